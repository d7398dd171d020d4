// The systems that this program can replay, one function a source file.
#pragma once

#include "oracle_case.hpp"

namespace oracle {

std::vector<replayer> softmax_blocks();  // mixtral, olmoe, qwen2_moe, qwen3_moe, deepseek_v2, deepseek_v3
std::vector<replayer> decoder_blocks();  // phimoe, jetmoe, gpt_oss, llama4, megatron
std::vector<replayer> attention_mixtures();  // moa
std::vector<replayer> switch_heads();    // switchhead
std::vector<replayer> vision_routers();  // vmoe
std::vector<replayer> token_choice();    // noisy_topk, switch, top2_gshard, st_moe, tutel
std::vector<replayer> soft_routers();    // soft_moe, soft_moe_lucidrains
std::vector<replayer> selectors();       // dselect_k, remoe
std::vector<replayer> probes();          // moe_plus_plus, dynmoe, peer
std::vector<replayer> dense_gates();     // gg_moe, kamoe, evomoe, sparsemixer, sigma_moe, shiftaddvit, speechmoe, hmoe
std::vector<replayer> memory_layers();   // ultramem, ultramem_tdqkr
std::vector<replayer> nested_experts();  // mone_router, mone
std::vector<replayer> patches();         // pmoe_gate, pmoe
std::vector<replayer> per_sample();      // advmoe
std::vector<replayer> adapters();        // mov, molora, octavius, mocle_gate, mocle, mixphm
std::vector<replayer> merged_experts();  // smear, mann, meo
std::vector<replayer> slot_adapters();   // soft_moa, move_kd
std::vector<replayer> contrast();        // scmoe_contrast
std::vector<replayer> thresholds();      // xmoe, mc_moe
std::vector<replayer> fixed_routers();   // hash_layer, ewa, smoe_dropout
std::vector<replayer> assigned_routers();  // sinkhorn, blackmamba, base_layer, ksparse_ot
std::vector<replayer> stable_routers();  // stablemoe
std::vector<replayer> codebook_policies();  // cvq_vae, vq_kmeans, ibq, optvq, vq_wae
std::vector<replayer> drawn_codes();     // gumbel_vq, mcquic
std::vector<replayer> clusters();        // kmeans
std::vector<replayer> code_search_systems();  // pq, ivf_pq, additive_rq, distill_vq

/// JetMoE's attention, in attention_mixtures.cpp.
template <typename Scalar>
void jetmoe_attention_block(oracle_case<Scalar>& c);

/// What MC-MoE does before inference, in weight_quantizers.cpp.
template <typename Scalar>
void mc_moe_bits(oracle_case<Scalar>& c);

/// The dense-to-sparse gate in the code of SMoE-Dropout, in dense_gates.cpp.
template <typename Scalar>
void mean_active_gate(oracle_case<Scalar>& c);
std::vector<replayer> vector_codebooks();  // vq, simvq, rotation_trick, vq_taming, mauve
std::vector<replayer> code_readers();  // transformer_vq, movq
std::vector<replayer> scalar_quantizers();  // fsq, fsq_original, residual_fsq, lfq, bsq
std::vector<replayer> residual_codebooks();  // rvq, encodec_rvq, grouped_rvq, dac_rvq, kmeans_vq, rq_vae
std::vector<replayer> quantized_files();  // fp8_block, gptq_int4, awq_int4, compressed_tensors_int4, nvfp4, mxfp4,
                                          // checkpoint_folder, gguf_file
std::vector<replayer> weight_quantizers();  // rtn, moqe, finequant, gptq_core, gwq, qmoe
std::vector<replayer> vector_formats();  // ggml_iq, vptq
std::vector<replayer> weight_codes();    // gptvq, aqlm, pv_tuning

/// VPTQ's quantiser, in weight_codes.cpp.
template <typename Scalar>
void vptq_sweep(oracle_case<Scalar>& c);
std::vector<replayer> block_formats();  // ggml_blocks, ggml_quantise

/// QMoE's rows and its dictionary, in vector_formats.cpp.
template <typename Scalar>
void replay_ternary_runs(oracle_case<Scalar>& c);
std::vector<replayer> conversions();     // m_smoe, mc_smoe_losparse, task_pruning, router_norm_pruning, ones_gather
std::vector<replayer> images();          // advmoe_conv, cluster_moe
std::vector<replayer> factorized_experts();  // mpoe
std::vector<replayer> encoders();        // vrd_logsum, mova_gate
std::vector<replayer> multilinear_mixtures();  // mumoe
std::vector<replayer> derived_experts();  // automoe, rmoe, compressed_experts
std::vector<replayer> shift_experts();   // shift_expert, minimoe
std::vector<replayer> statistical_mixtures();  // gauss_lasso_moe, mmvae
std::vector<replayer> tasks();           // mmoe_ex, mmoe, competesmoe, r2t2
std::vector<replayer> branches();  // residual_moe, longcat_shortcut
std::vector<replayer> sub_tokens();  // mh_moe
std::vector<replayer> stacks();  // momentum_smoe
std::vector<replayer> union_of_experts();  // uoe

}  // namespace oracle
