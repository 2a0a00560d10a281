// The arithmetic that has one implementation per CPU: a table of functions, filled per code path.
//
// Every function computes each of its outputs by the same operations in the same order however the
// work was cut into tasks, so that results do not depend on the number of threads. In the exact
// precision they do not depend on the number of tokens computed together either.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mobilemoe {

// How a cache stores keys and values (mobilemoe_cache_type). Positions go in blocks; a block holds
// first the keys, feature by feature [head_dim][kBlock], then the values [kBlock][value_width],
// then, for int8, the scales of the keys and of the values, float32 [kBlock] each.
constexpr int kBlock = 16;
enum class CacheType { float32 = 0, float16 = 1, int8 = 2 };

inline int value_width(int head_dim) { return (head_dim + 15) / 16 * 16; }
inline size_t element_bytes(CacheType type) {
  return type == CacheType::float32 ? 4 : type == CacheType::float16 ? 2 : 1;
}
inline size_t block_bytes(CacheType type, int head_dim) {
  const size_t elements = static_cast<size_t>(kBlock) * (head_dim + value_width(head_dim));
  return elements * element_bytes(type) + (type == CacheType::int8 ? 2 * kBlock * sizeof(float) : 0);
}

// A product takes its activations in a form of its own ("prepared"), made once per token: rounded
// to integers for the quantised precisions, in the order in which codes come out of their bytes.
// `single`: the form for one token alone, which is read by another loop than that for many.

// y[t * y_stride + r] = x[t] . weight[r] for rows `begin` to `end` - 1, groups along the columns.
struct LinearTask {
  const uint8_t* prepared;
  size_t prepared_stride;
  int count;
  bool single;
  int columns;
  const uint8_t* codes;   // of row 0
  const uint8_t* scales;  // of row 0
  int begin, end;
  float* y;
  size_t y_stride;
  uint8_t* scratch;  // linear_scratch_bytes, of this thread
  // Where this thread reads on when the task is done, for one token; null: right behind it.
  const uint8_t* next_codes;
  const uint8_t* next_scales;
};

// y[i * y_stride + c] = sum over r of x[rows[i]][r] weight[r][c] for columns `begin` to `end` - 1
// (multiples of 32), groups along the columns. One expert.
struct ExpertTask {
  const uint8_t* prepared;
  size_t prepared_stride;
  const int32_t* rows;  // [count], of `prepared`
  int count;
  bool single;
  int inputs, outputs;
  const uint8_t* codes;
  const uint8_t* scales;
  int begin, end;
  float* y;
  size_t y_stride;
  uint8_t* scratch;  // expert_scratch_bytes, of this thread
  const uint8_t* next_codes;  // as in LinearTask
  const uint8_t* next_scales;
};

// The products of one precision.
struct Products {
  size_t (*linear_bytes)(int columns);  // of one prepared token
  void (*prepare_linear)(const float* x, int columns, bool single, uint8_t* prepared);
  void (*linear)(const LinearTask& task);
  size_t (*linear_scratch_bytes)(int columns, int count);
  int linear_rows;  // of a tile, a multiple of 8: tasks of many tokens begin at multiples of it

  size_t (*expert_bytes)(int inputs);
  void (*prepare_expert)(const float* x, int inputs, bool single, uint8_t* prepared);
  void (*expert)(const ExpertTask& task);
  size_t (*expert_scratch_bytes)(int inputs, int outputs, int count);
};

// Attention of up to kMostQueries queries, which read the same key/value head, over some blocks.
// Query i sees positions begin[i] to end[i] - 1; position 0 is the first of `first_block`.
constexpr int kMostQueries = 6;
constexpr int kChunkBlocks = 16;  // most blocks of a call
constexpr int kChunk = kChunkBlocks * kBlock;

struct AttendTask {
  const float* queries[kMostQueries];  // [head_dim], times the score scale
  int begin[kMostQueries], end[kMostQueries];
  int count;
  int head_dim;
  const uint8_t* block;  // the first
  int blocks;
  const void* keys;    // in its place where the cache is rows (RowCache), of the first position
  const void* values;
  // Results: largest score (-infinity when nothing is seen), sum of exp(score - largest), and the
  // values weighted with those [value_width].
  float largest[kMostQueries];
  float sum[kMostQueries];
  float* mixed[kMostQueries];
  float* weights;  // scratch [kMostQueries][kChunk]
};

struct Kernels {
  const char* name;
  bool (*runs_here)();

  // y = x / sqrt(mean(x^2) + eps) * weight; y may be x; a null weight is 1.
  void (*rms_norm)(const float* x, const float* weight, int width, float eps, float* y);
  // gate = silu(gate) * up
  void (*swiglu)(float* gate, const float* up, int width);
  // y[r] = x . weight[r], float32 of any alignment [rows][columns]
  void (*router)(const float* x, const uint8_t* weight, int rows, int columns, float* y);

  const Products* products[3];          // by mobilemoe_precision
  void (*attend[3])(AttendTask& task);  // by CacheType
  void (*attend_rows[2])(AttendTask& task);  // of a RowCache; float32 and float16
};

extern const Kernels kPortable;
#if defined(__x86_64__) && defined(__GNUC__)
#define MOBILEMOE_X86 1
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif
#if defined(__aarch64__) && defined(__GNUC__)
#define MOBILEMOE_ARM64 1
extern const Kernels kNeon;
extern const Kernels kNeonDot;
extern const Kernels kNeonI8mm;
#endif

// Code paths in this build, fastest first, `*count` of them.
const Kernels* const* all_kernels(int* count);

}  // namespace mobilemoe
