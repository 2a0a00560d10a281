/* MobileMoE on the CPU: INT4 weights in the published layout, computed in place.
 *
 * Plain C, no dependencies, no input or output: the caller owns every weight (from a memory map,
 * say) and keeps it readable and unchanged as long as the handles that point to it.
 *
 * Errors: every function that can fail returns a code; `error`, where it is not NULL, receives the
 * code and a sentence. Nothing is half done: after an error a session is as it was before the call.
 * Threads: handles may be used from any thread. Calls on one runtime take turns at its pool; a
 * session serves one call at a time (the second gets MOBILEMOE_BUSY).
 * Memory: create functions allocate; nothing else does.
 * Arrays are dense, row-major, the last size runs fastest. Weights need no alignment; arrays of
 * float, int32_t and the workspace have that of their element type.
 *
 * INT4, the published form: two codes a byte, the low four bits first, two's complement (-8 to 7);
 * value = code x scale, with one IEEE float16 scale for 32 values that follow each other in a row.
 * Scales are finite and at most 8188 (65504 / 8). */
#ifndef MOBILEMOE_H
#define MOBILEMOE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MOBILEMOE_API
#else
#define MOBILEMOE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a declaration below changes its meaning or a new one comes; a caller that loads the library at run
 * time compares it with mobilemoe_abi_version(). */
#define MOBILEMOE_ABI_VERSION 3

typedef enum mobilemoe_status {
  MOBILEMOE_OK = 0,
  MOBILEMOE_BAD_ARGUMENT = 1,    /* a size, pointer, token or setting is wrong */
  MOBILEMOE_OUT_OF_MEMORY = 2,
  MOBILEMOE_UNSUPPORTED_CPU = 3, /* the code path that was asked for cannot run here */
  MOBILEMOE_CONTEXT_FULL = 4,    /* the session's cache has no room for the tokens */
  MOBILEMOE_CANCELLED = 5,
  MOBILEMOE_BUSY = 6,            /* another thread is inside a call on this session */
  MOBILEMOE_READ_FAILED = 7      /* the owner's mobilemoe_expert_source did not give an expert */
} mobilemoe_status;

#define MOBILEMOE_MESSAGE_BYTES 256

typedef struct mobilemoe_error {
  mobilemoe_status status;
  char message[MOBILEMOE_MESSAGE_BYTES]; /* one sentence, zero-terminated */
} mobilemoe_error;

MOBILEMOE_API int32_t mobilemoe_abi_version(void);

/* ---- Runtime: a CPU code path, a precision and a pool of threads ------------------------------ */

typedef enum mobilemoe_precision {
  MOBILEMOE_EXACT = 0, /* float32 activations; the reference */
  MOBILEMOE_INT16 = 1, /* activations rounded to 16 bits per 32 values: near exact */
  MOBILEMOE_INT8 = 2   /* activations rounded to 8 bits per 32 values, as the paper's */
} mobilemoe_precision;

typedef struct mobilemoe_runtime mobilemoe_runtime;

typedef struct mobilemoe_runtime_options {
  int32_t precision;    /* a mobilemoe_precision */
  int32_t threads;      /* 1 to 16, the calling thread among them; results do not depend on it */
  const char *cpu_path; /* NULL: the fastest that this CPU runs; else a name as
                           mobilemoe_cpu_path_name gives it */
} mobilemoe_runtime_options;

MOBILEMOE_API mobilemoe_status mobilemoe_runtime_create(const mobilemoe_runtime_options *options,
                                                        mobilemoe_runtime **runtime,
                                                        mobilemoe_error *error);
/* After every model of it is destroyed. NULL is allowed, here and in the other destroy functions. */
MOBILEMOE_API void mobilemoe_runtime_destroy(mobilemoe_runtime *runtime);
/* The code path in use: a static string. */
MOBILEMOE_API const char *mobilemoe_runtime_cpu_path(const mobilemoe_runtime *runtime);

/* The code paths that this CPU can run, fastest first: index 0, 1, ... until NULL. Of x86-64
 * "avx512vnni", "avx2"; of arm64 "neoni8mm", "neondot", "neon"; everywhere "portable". */
MOBILEMOE_API const char *mobilemoe_cpu_path_name(int32_t index);

/* ---- Tensors ----------------------------------------------------------------------------------- */

/* Bytes of the caller. `bytes` is compared with what the shape needs, so that a mismatched tensor
 * is an error and not a wild read. */
typedef struct mobilemoe_tensor {
  const void *data;
  size_t bytes;
} mobilemoe_tensor;

typedef struct mobilemoe_int4 {
  mobilemoe_tensor codes;  /* uint8 [..., rows, columns / 2] */
  mobilemoe_tensor scales; /* float16 [..., rows, columns / 32] */
} mobilemoe_int4;

/* ---- Model ------------------------------------------------------------------------------------- */

/* Names are those of config.json. Sizes that are divided by 32 are multiples of it. */
typedef struct mobilemoe_config {
  int32_t vocab_size;
  int32_t hidden_size;           /* d, a multiple of 32 */
  int32_t num_hidden_layers;
  int32_t num_attention_heads;   /* a multiple of num_key_value_heads; times head_dim one of 32 */
  int32_t num_key_value_heads;
  int32_t head_dim;              /* even, at most 256 */
  int32_t intermediate_size;     /* w: width of a routed expert, a multiple of 32 */
  int32_t intermediate_size_mlp; /* width of the shared expert, a multiple of 32 */
  int32_t num_local_experts;     /* E, at most 1024; 0: a dense decoder, whose feed-forward is what
                                    is called the shared expert here, and nothing else */
  int32_t num_experts_per_tok;   /* at most 64 */
  int32_t norm_topk_prob;        /* 1: a token's expert weights are divided by their sum */
  int32_t use_qk_norm;           /* 1: q and k heads are divided by their RMS after RoPE */
  float rms_norm_eps;
  float routed_scaling_factor;
  const float *rope_periods;     /* [head_dim / 2]; read at creation only; mobilemoe_rope_periods */
} mobilemoe_config;

/* The routed experts and the shared one. Routed experts lie [in, out] with groups along out,
 * linears [out, in] with groups along in. Without routed experts their tensors are not looked at;
 * with a mobilemoe_expert_source, those of gate_up and down are not. */
typedef struct mobilemoe_moe_weights {
  mobilemoe_tensor router;      /* float32 [E, d] */
  mobilemoe_tensor expert_bias; /* bfloat16 or float32 [E] */
  mobilemoe_int4 gate_up;       /* [E, d, 2 w]: gate in columns 0 to w - 1, then up */
  mobilemoe_int4 down;          /* [E, w, d] */
  mobilemoe_int4 shared_gate;   /* [intermediate_size_mlp, d] */
  mobilemoe_int4 shared_up;     /* [intermediate_size_mlp, d] */
  mobilemoe_int4 shared_down;   /* [d, intermediate_size_mlp] */
} mobilemoe_moe_weights;

/* Norms are bfloat16 or float32, told apart by their bytes. */
typedef struct mobilemoe_layer_weights {
  mobilemoe_tensor input_layernorm; /* [d] */
  mobilemoe_int4 q_proj;            /* [heads * head_dim, d] */
  mobilemoe_int4 k_proj;            /* [kv_heads * head_dim, d] */
  mobilemoe_int4 v_proj;            /* [kv_heads * head_dim, d] */
  mobilemoe_int4 o_proj;            /* [d, heads * head_dim] */
  mobilemoe_tensor post_attention_layernorm; /* [d] */
  mobilemoe_moe_weights feed_forward;
  int32_t sliding_window; /* 0: a position sees all before it; else the last sliding_window only,
                             itself among them */
} mobilemoe_layer_weights;

/* Where the weights of one routed expert are to be put: its parts of gate_up [d, 2 w] and
 * down [w, d], of the bytes that their shapes need. */
typedef struct mobilemoe_expert_buffers {
  uint8_t *gate_up_codes;  /* d w bytes */
  uint8_t *gate_up_scales; /* d w / 8 */
  uint8_t *down_codes;     /* d w / 2 */
  uint8_t *down_scales;    /* d w / 16 */
} mobilemoe_expert_buffers;

/* Fills the four buffers with an expert's weights, always the same; 0 when they are complete. Else it
 * has written a sentence into `message` [MOBILEMOE_MESSAGE_BYTES], and the call that needed the expert
 * returns MOBILEMOE_READ_FAILED with it. Called from several threads at once: the one inside
 * session_feed, and those that the model holds for reading. It must not call this library. */
typedef int32_t (*mobilemoe_read_expert)(void *owner, int32_t layer, int32_t expert,
                                         const mobilemoe_expert_buffers *buffers, char *message);

/* Routed experts that come when they are needed, for models that memory does not hold: the model keeps
 * those that were used most lately. Results are the same bits as without. */
typedef struct mobilemoe_expert_source {
  mobilemoe_read_expert read;
  void *owner;         /* handed to `read` */
  size_t memory_bytes; /* for weights of experts, at least mobilemoe_least_expert_memory; used as it
                          fills, never more */
} mobilemoe_expert_source;

typedef struct mobilemoe_weights {
  mobilemoe_int4 embed_tokens;           /* [vocab_size, d]; also the output head */
  mobilemoe_tensor norm;                 /* [d], bfloat16 or float32 */
  const mobilemoe_layer_weights *layers; /* [num_hidden_layers]; the array is copied */
  const mobilemoe_expert_source *expert_source; /* copied; NULL: routed experts lie in `layers` */
} mobilemoe_weights;

typedef struct mobilemoe_model mobilemoe_model;

MOBILEMOE_API mobilemoe_status mobilemoe_model_create(mobilemoe_runtime *runtime,
                                                      const mobilemoe_config *config,
                                                      const mobilemoe_weights *weights,
                                                      mobilemoe_model **model,
                                                      mobilemoe_error *error);
/* After every session of it is destroyed. */
MOBILEMOE_API void mobilemoe_model_destroy(mobilemoe_model *model);

/* The fewest memory_bytes of a mobilemoe_expert_source: room for the experts of one token in one layer,
 * and for two at least; 0 for sizes that are wrong or without routed experts. */
MOBILEMOE_API size_t mobilemoe_least_expert_memory(const mobilemoe_config *config);

/* What a mobilemoe_expert_source was asked for since the model was created. An expert counts once
 * for each time that a layer computes with it, for one token or for a block of them. */
typedef struct mobilemoe_expert_counters {
  int64_t hits;       /* it was in memory */
  int64_t misses;     /* it was asked for */
  int64_t bytes_read; /* of those that came */
  int32_t held;       /* experts that memory_bytes has room for, of all layers together */
} mobilemoe_expert_counters;

/* All zero for a model without a source. From any thread. */
MOBILEMOE_API void mobilemoe_model_expert_counters(const mobilemoe_model *model,
                                                   mobilemoe_expert_counters *counters);

/* Periods of RoPE's pairs divided by 2 pi, after llama3's stretching: position p turns pair i by
 * p / periods[i] radians. factor 1 means no scaling. `periods` [head_dim / 2]. */
MOBILEMOE_API mobilemoe_status mobilemoe_rope_periods(int32_t head_dim, double theta, double factor,
                                                      double low_freq_factor,
                                                      double high_freq_factor,
                                                      double original_max_position_embeddings,
                                                      float *periods, mobilemoe_error *error);

/* ---- Session: one conversation, with its key/value cache --------------------------------------- */

typedef enum mobilemoe_cache_type {
  MOBILEMOE_CACHE_FLOAT32 = 0,
  MOBILEMOE_CACHE_FLOAT16 = 1,
  MOBILEMOE_CACHE_INT8 = 2 /* one float32 scale per head and position */
} mobilemoe_cache_type;

typedef struct mobilemoe_session_options {
  int32_t context; /* positions of the cache, fixed */
  int32_t cache_type; /* a mobilemoe_cache_type */
  int32_t block;   /* most tokens computed together, 1 to 4096; longer input is cut. Scratch memory
                      grows with it; 512 is a good size */
} mobilemoe_session_options;

typedef enum mobilemoe_logits {
  MOBILEMOE_LOGITS_NONE = 0,
  MOBILEMOE_LOGITS_LAST = 1, /* logits [vocab_size], after the last token */
  MOBILEMOE_LOGITS_ALL = 2   /* logits [count, vocab_size], after each */
} mobilemoe_logits;

typedef struct mobilemoe_session mobilemoe_session;

MOBILEMOE_API mobilemoe_status mobilemoe_session_create(mobilemoe_model *model,
                                                        const mobilemoe_session_options *options,
                                                        mobilemoe_session **session,
                                                        mobilemoe_error *error);
MOBILEMOE_API void mobilemoe_session_destroy(mobilemoe_session *session);

/* Append `count` tokens (one: decode; more: prefill). `which`: a mobilemoe_logits. */
MOBILEMOE_API mobilemoe_status mobilemoe_session_feed(mobilemoe_session *session,
                                                      const int32_t *tokens, int32_t count,
                                                      int32_t which, float *logits,
                                                      mobilemoe_error *error);
/* Tokens in the cache. */
MOBILEMOE_API int32_t mobilemoe_session_position(const mobilemoe_session *session);
/* Forget all tokens from `position` on. */
MOBILEMOE_API mobilemoe_status mobilemoe_session_rewind(mobilemoe_session *session,
                                                        int32_t position, mobilemoe_error *error);
/* Which experts the last `count` tokens chose: experts [num_hidden_layers, count, num_experts_per_tok],
 * by falling score. Known are the tokens that session_feed computed together last, so at most its last
 * `block` of them; none after rewind, load and an error. */
MOBILEMOE_API mobilemoe_status mobilemoe_session_experts(mobilemoe_session *session, int32_t count,
                                                         int32_t *experts, mobilemoe_error *error);
/* From any thread: the running call returns MOBILEMOE_CANCELLED, or the next one if none runs. */
MOBILEMOE_API void mobilemoe_session_cancel(mobilemoe_session *session);

/* The cache's content as bytes, for another session of the same shape and cache type on a machine
 * of the same byte order; its context may differ. */
MOBILEMOE_API size_t mobilemoe_session_saved_bytes(const mobilemoe_session *session);
MOBILEMOE_API mobilemoe_status mobilemoe_session_save(mobilemoe_session *session, void *bytes,
                                                      size_t size, mobilemoe_error *error);
MOBILEMOE_API mobilemoe_status mobilemoe_session_load(mobilemoe_session *session, const void *bytes,
                                                      size_t size, mobilemoe_error *error);

/* ---- Operators, one by one --------------------------------------------------------------------- */

/* They allocate nothing: those that need room take a `workspace` of at least the bytes that the
 * function of the same name with _workspace returns for the sizes (0 for sizes that are wrong). */

/* y [count, hidden] = the rows tokens[count] of table [vocab, hidden]. */
MOBILEMOE_API mobilemoe_status mobilemoe_embedding(mobilemoe_runtime *runtime,
                                                   const mobilemoe_int4 *table, int32_t vocab,
                                                   int32_t hidden, const int32_t *tokens,
                                                   int32_t count, float *y, mobilemoe_error *error);

/* y [count, width] = x / sqrt(mean(x^2) + eps) * weight [width] (bfloat16 or float32). y may be x. */
MOBILEMOE_API mobilemoe_status mobilemoe_rms_norm(mobilemoe_runtime *runtime, const float *x,
                                                  const mobilemoe_tensor *weight, int32_t count,
                                                  int32_t width, float eps, float *y,
                                                  mobilemoe_error *error);

/* y [count, rows] = x [count, columns] times weight [rows, columns], transposed. The output head is
 * this with the embedding table. */
MOBILEMOE_API size_t mobilemoe_linear_int4_workspace(const mobilemoe_runtime *runtime,
                                                     int32_t count, int32_t rows, int32_t columns);
MOBILEMOE_API mobilemoe_status mobilemoe_linear_int4(mobilemoe_runtime *runtime,
                                                     const mobilemoe_int4 *weight, int32_t rows,
                                                     int32_t columns, const float *x, int32_t count,
                                                     float *y, void *workspace,
                                                     size_t workspace_bytes,
                                                     mobilemoe_error *error);

/* logits [count, vocab] = rms_norm(x [count, hidden]) times table [vocab, hidden], transposed. */
MOBILEMOE_API size_t mobilemoe_head_workspace(const mobilemoe_runtime *runtime, int32_t count,
                                              int32_t vocab, int32_t hidden);
MOBILEMOE_API mobilemoe_status mobilemoe_head(mobilemoe_runtime *runtime, const float *x,
                                              const mobilemoe_tensor *norm, float eps,
                                              const mobilemoe_int4 *table, int32_t vocab,
                                              int32_t hidden, int32_t count, float *logits,
                                              void *workspace, size_t workspace_bytes,
                                              mobilemoe_error *error);

typedef struct mobilemoe_attention_shape {
  int32_t heads;    /* a multiple of kv_heads */
  int32_t kv_heads;
  int32_t head_dim; /* even, at most 256 */
  int32_t context;  /* rows of the caches */
  int32_t qk_norm;  /* 1: heads of q and k are divided by sqrt(mean(h^2) + qk_norm_eps) */
  float qk_norm_eps;
  float score_scale; /* 1 / sqrt(head_dim) */
} mobilemoe_attention_shape;

/* Rotate (and norm) q and k, then attend: token t, at position + t, sees rows 0 to position - 1 of
 * the caches and new rows 0 to t. The caches are only read; the caller stores the new rows.
 * q [count, heads, head_dim]; k, v [count, kv_heads, head_dim];
 * key_cache, value_cache [kv_heads, context, head_dim] (unused, may be NULL, at position 0);
 * periods [head_dim / 2]; new_keys, new_values [kv_heads, count, head_dim];
 * y [count, heads, head_dim]. Positions are below 2^24. */
MOBILEMOE_API size_t mobilemoe_attention_workspace(const mobilemoe_runtime *runtime,
                                                   const mobilemoe_attention_shape *shape,
                                                   int32_t position, int32_t count);
MOBILEMOE_API mobilemoe_status mobilemoe_attention(
    mobilemoe_runtime *runtime, const mobilemoe_attention_shape *shape, const float *q,
    const float *k, const float *v, int32_t position, int32_t count, const float *key_cache,
    const float *value_cache, const float *periods, float *new_keys, float *new_values, float *y,
    void *workspace, size_t workspace_bytes, mobilemoe_error *error);

typedef struct mobilemoe_moe_shape {
  int32_t hidden_size;
  int32_t intermediate_size;     /* of a routed expert */
  int32_t intermediate_size_mlp; /* of the shared expert; 0: there is none */
  int32_t num_local_experts;     /* 0: the shared expert alone */
  int32_t num_experts_per_tok;
  int32_t norm_topk_prob;
  float routed_scaling_factor;
} mobilemoe_moe_shape;

/* y [count, d] = weighted sum of each token's routed experts + the shared expert, of x [count, d].
 * Router, choice and weights are float32 in every precision: the num_experts_per_tok largest of
 * sigmoid(router x) + expert_bias, ties to the lower index, weighted by the sigmoid alone. */
MOBILEMOE_API size_t mobilemoe_moe_ffn_workspace(const mobilemoe_runtime *runtime,
                                                 const mobilemoe_moe_shape *shape, int32_t count);
MOBILEMOE_API mobilemoe_status mobilemoe_moe_ffn(mobilemoe_runtime *runtime,
                                                 const mobilemoe_moe_shape *shape,
                                                 const mobilemoe_moe_weights *weights,
                                                 const float *x, int32_t count, float *y,
                                                 void *workspace, size_t workspace_bytes,
                                                 mobilemoe_error *error);

#ifdef __cplusplus
}
#endif

#endif /* MOBILEMOE_H */
