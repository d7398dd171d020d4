/// The whole room: adapters, mixtures of them, and the frozen layers beside which they stand.
#pragma once

#include <sluice/adapter/adapted.hpp>
#include <sluice/adapter/adapted_bank.hpp>
#include <sluice/adapter/adapted_feed_forward.hpp>
#include <sluice/adapter/context_information.hpp>
#include <sluice/adapter/fine_tuning.hpp>
#include <sluice/adapter/joined_low_rank.hpp>
#include <sluice/adapter/kronecker_adapters.hpp>
#include <sluice/adapter/kronecker_sum.hpp>
#include <sluice/adapter/low_rank.hpp>
#include <sluice/adapter/merge.hpp>
#include <sluice/adapter/of_modality.hpp>
#include <sluice/adapter/per_instance.hpp>
#include <sluice/adapter/rank_one.hpp>
#include <sluice/adapter/redundancy.hpp>
#include <sluice/adapter/scaling_bank.hpp>
#include <sluice/adapter/slots.hpp>
#include <sluice/adapter/token_weights.hpp>
