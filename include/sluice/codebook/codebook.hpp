/// The whole room: quantisers, their codebooks and policies.
#pragma once

#include <sluice/codebook/assign/nearest.hpp>
#include <sluice/codebook/attention/quantized_attention.hpp>
#include <sluice/codebook/attention/window_and_cache.hpp>
#include <sluice/codebook/code_search.hpp>
#include <sluice/codebook/code_sums.hpp>
#include <sluice/codebook/code_usage.hpp>
#include <sluice/codebook/codes/learned.hpp>
#include <sluice/codebook/codes/mapped.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/divergence_frontier.hpp>
#include <sluice/codebook/gradient/rotation.hpp>
#include <sluice/codebook/gradient/straight_through.hpp>
#include <sluice/codebook/loss/commitment.hpp>
#include <sluice/codebook/metric.hpp>
#include <sluice/codebook/nearest.hpp>
#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/codebook/quantizer.hpp>
#include <sluice/codebook/search/code_packing.hpp>
#include <sluice/codebook/search/cost_tables.hpp>
#include <sluice/codebook/search/product_codes.hpp>
#include <sluice/codebook/structure/quantizer_decorator.hpp>
#include <sluice/codebook/structure/unit_rows.hpp>
#include <sluice/codebook/vector_quantizer.hpp>
