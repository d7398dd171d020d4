/// The whole room: attention between the tokens of a sequence and to other sources, and mixtures of it.
#pragma once

#include <sluice/attention/attention_projections.hpp>
#include <sluice/attention/cross_attention.hpp>
#include <sluice/attention/dot_product_attention.hpp>
#include <sluice/attention/encoder_fusion.hpp>
#include <sluice/attention/head_router.hpp>
#include <sluice/attention/key_value_cache.hpp>
#include <sluice/attention/routed_query_attention.hpp>
#include <sluice/attention/routed_value_attention.hpp>
#include <sluice/attention/selective_attention.hpp>
#include <sluice/attention/self_attention.hpp>
#include <sluice/attention/weighed_attention.hpp>
