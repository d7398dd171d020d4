/// Everything in sluice but io/ (JSON is slow to compile) and exec/tbb.hpp (needs oneTBB).
#pragma once

#include <sluice/exec/openmp.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/lambda.hpp>
#include <sluice/expert/neuron_bank.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/shared_expert.hpp>
#include <sluice/reference/naive_moe.hpp>
#include <sluice/router/product_key.hpp>
#include <sluice/router/top_k.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/clip.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/schedule.hpp>
#include <sluice/train/sgd.hpp>
#include <sluice/version.hpp>
