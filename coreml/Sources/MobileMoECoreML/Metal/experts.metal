// MobileMoEExperts (coreml/README.md, section 5.3) on Apple's GPUs, straight from packed INT4.
//
// Everything is float32, as the contract's limit of 1e-5 wants it. ExpertsOnGPU.swift dispatches: for
// one token norm, router, select and the kernels that end in _one, which read each selected weight
// once; for many also sort, and the kernels that end in _many, which multiply tiles of 32 tokens of one
// expert by unpacked weights.
//
// Sizes are multiples of 32, a group of INT4. Tests compile this file as C++ too
// (coreml/Tests/Stubs/MetalShim), so it keeps to what both languages mean alike.
#include <metal_stdlib>
using namespace metal;

struct Sizes {  // as in ExpertsOnGPU.swift
  uint hidden, width, shared, experts, per_token, tokens, normalize;
  float norm_eps, weight_scale;
};

// Entries of one expert that are multiplied together.
struct Tile {
  uint expert, first, count;
};

constant uint kGroup = 32;      // values of a scale
constant uint kLanes = 32;      // threads of a simdgroup
constant uint kTileRows = 32;   // entries, or tokens, of a tile
constant uint kTileColumns = 64;
constant uint kBlock = 128;     // columns of a threadgroup of the kernels for one token
constant uint kNone = 0xFFFFFFFF;

// Code number `index` of a word, the low four bits first, two's complement.
inline float code(uint word, uint index) { return float(int(word << (28 - 4 * index)) >> 28); }

inline float silu(float z) { return z / (1.0f + exp(-z)); }

// ---- Norm, router, choice ------------------------------------------------------------------------

// A threadgroup per token.
kernel void experts_norm(constant Sizes& sizes [[buffer(0)]],
                         device const float* residual [[buffer(1)]],
                         device const float* weight [[buffer(2)]],
                         device float* x [[buffer(3)]],
                         threadgroup float* sums [[threadgroup(0)]],
                         uint token [[threadgroup_position_in_grid]],
                         uint index [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  const ulong row = ulong(token) * sizes.hidden;
  const uint threads = simdgroups * kLanes;
  float squares = 0;
  for (uint i = index; i < sizes.hidden; i += threads) squares += residual[row + i] * residual[row + i];
  squares = simd_sum(squares);
  if (lane == 0) sums[simdgroup] = squares;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0;
  for (uint i = 0; i < simdgroups; ++i) total += sums[i];
  const float root = sqrt(total / float(sizes.hidden) + sizes.norm_eps);
  for (uint i = index; i < sizes.hidden; i += threads) x[row + i] = residual[row + i] / root * weight[i];
}

// A simdgroup per expert and token: sigmoid(router x), without bias.
kernel void experts_router(constant Sizes& sizes [[buffer(0)]],
                           device const float* x [[buffer(1)]],
                           device const float* router [[buffer(2)]],
                           device float* scores [[buffer(3)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint expert = group.x * simdgroups + simdgroup;
  const uint token = group.y;
  if (expert >= sizes.experts) return;
  float sum = 0;
  for (uint i = lane; i < sizes.hidden; i += kLanes) {
    sum += x[ulong(token) * sizes.hidden + i] * router[ulong(expert) * sizes.hidden + i];
  }
  sum = simd_sum(sum);
  if (lane == 0) scores[ulong(token) * sizes.experts + expert] = 1.0f / (1.0f + exp(-sum));
}

// A simdgroup per token: the experts of the largest score with bias, ties to the lower index.
kernel void experts_select(constant Sizes& sizes [[buffer(0)]],
                           device const float* scores [[buffer(1)]],
                           device const float* bias [[buffer(2)]],
                           device uint* experts [[buffer(3)]],
                           device float* weights [[buffer(4)]],
                           uint token [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]]) {
  device const float* score = scores + ulong(token) * sizes.experts;
  uint taken = 0;                    // of this lane's experts, lane + 32 i, those that are selected
  float own[2] = {0.0f, 0.0f};       // scores of slots lane and lane + 32
  float total = 0;
  for (uint slot = 0; slot < sizes.per_token; ++slot) {
    uint best = kNone;
    float best_sum = -INFINITY;
    for (uint i = 0; lane + kLanes * i < sizes.experts; ++i) {
      const uint expert = lane + kLanes * i;
      const float sum = score[expert] + bias[expert];
      // Something that is not a number loses, but is chosen before nothing is.
      if ((taken >> i & 1) == 0 && (best == kNone || sum > best_sum)) {
        best = expert;
        best_sum = isnan(sum) ? -INFINITY : sum;
      }
    }
    const float largest = simd_max(best_sum);
    const uint expert = simd_min(best_sum == largest ? best : kNone);
    if (expert % kLanes == lane) taken |= 1u << (expert / kLanes);
    if (slot % kLanes == lane) own[slot / kLanes] = score[expert];
    total += score[expert];
    if (lane == 0) experts[token * sizes.per_token + slot] = expert;
  }
  const float divisor = sizes.normalize != 0 ? total + 1e-20f : 1.0f;
  for (uint slot = lane; slot < sizes.per_token; slot += kLanes) {
    weights[token * sizes.per_token + slot] = own[slot / kLanes] / divisor * sizes.weight_scale;
  }
}

// ---- One token -----------------------------------------------------------------------------------

// Experts lie [in, out] with groups along out: each lane owns four columns and walks down the rows,
// which the simdgroups of a threadgroup share. A threadgroup per 128 columns and slot.
kernel void experts_gate_up_one(constant Sizes& sizes [[buffer(0)]],
                                device const float* x [[buffer(1)]],
                                device const uchar* codes [[buffer(2)]],
                                device const half* scales [[buffer(3)]],
                                device const uint* experts [[buffer(4)]],
                                device float* hidden [[buffer(5)]],
                                threadgroup float* sums [[threadgroup(0)]],
                                uint3 group [[threadgroup_position_in_grid]],
                                uint index [[thread_index_in_threadgroup]],
                                uint lane [[thread_index_in_simdgroup]],
                                uint simdgroup [[simdgroup_index_in_threadgroup]],
                                uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint width = sizes.width;
  const uint column = group.x * kBlock + lane * 4;
  const ulong first_row = ulong(experts[group.y]) * sizes.hidden;
  float gate[4] = {0, 0, 0, 0}, up[4] = {0, 0, 0, 0};
  if (column < width) {
    for (uint i = simdgroup; i < sizes.hidden; i += simdgroups) {
      device const ushort* words = (device const ushort*)(codes + (first_row + i) * width);
      device const half* row_scales = scales + (first_row + i) * (2 * width / kGroup);
      const uint gate_word = words[column / 4], up_word = words[(width + column) / 4];
      const float gate_x = x[i] * float(row_scales[column / kGroup]);
      const float up_x = x[i] * float(row_scales[(width + column) / kGroup]);
      for (uint j = 0; j < 4; ++j) {
        gate[j] += gate_x * code(gate_word, j);
        up[j] += up_x * code(up_word, j);
      }
    }
  }
  for (uint j = 0; j < 4; ++j) {
    sums[(2 * simdgroup) * kBlock + lane * 4 + j] = gate[j];
    sums[(2 * simdgroup + 1) * kBlock + lane * 4 + j] = up[j];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint own = group.x * kBlock + index;
  if (index < kBlock && own < width) {
    float gate_sum = 0, up_sum = 0;
    for (uint i = 0; i < simdgroups; ++i) {
      gate_sum += sums[(2 * i) * kBlock + index];
      up_sum += sums[(2 * i + 1) * kBlock + index];
    }
    hidden[group.y * width + own] = silu(gate_sum) * up_sum;
  }
}

// The weighted sum of all slots. A threadgroup per 128 columns.
kernel void experts_down_one(constant Sizes& sizes [[buffer(0)]],
                             device const float* hidden [[buffer(1)]],
                             device const uchar* codes [[buffer(2)]],
                             device const half* scales [[buffer(3)]],
                             device const uint* experts [[buffer(4)]],
                             device const float* weights [[buffer(5)]],
                             device float* routed [[buffer(6)]],
                             threadgroup float* sums [[threadgroup(0)]],
                             uint group [[threadgroup_position_in_grid]],
                             uint index [[thread_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint column = group * kBlock + lane * 4;
  float sum[4] = {0, 0, 0, 0};
  if (column < sizes.hidden) {
    for (uint slot = 0; slot < sizes.per_token; ++slot) {
      const ulong first_row = ulong(experts[slot]) * sizes.width;
      for (uint i = simdgroup; i < sizes.width; i += simdgroups) {
        device const ushort* words =
            (device const ushort*)(codes + (first_row + i) * (sizes.hidden / 2));
        const uint word = words[column / 4];
        const float scale = float(scales[(first_row + i) * (sizes.hidden / kGroup) + column / kGroup]);
        const float factor = weights[slot] * hidden[slot * sizes.width + i] * scale;
        for (uint j = 0; j < 4; ++j) sum[j] += factor * code(word, j);
      }
    }
  }
  for (uint j = 0; j < 4; ++j) sums[simdgroup * kBlock + lane * 4 + j] = sum[j];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint own = group * kBlock + index;
  if (index < kBlock && own < sizes.hidden) {
    float total = 0;
    for (uint i = 0; i < simdgroups; ++i) total += sums[i * kBlock + index];
    routed[own] = total;
  }
}

// A lane's part of row `row` of a linear [rows, columns], which has its groups along the columns.
inline float linear_part(device const uchar* codes, device const half* scales, uint row, uint columns,
                         device const float* x, uint lane) {
  device const uint* words = (device const uint*)(codes + ulong(row) * (columns / 2));
  device const half* row_scales = scales + ulong(row) * (columns / kGroup);
  float sum = 0;
  for (uint column = lane * 8; column < columns; column += kLanes * 8) {
    const uint word = words[column / 8];
    float part = 0;
    for (uint j = 0; j < 8; ++j) part += x[column + j] * code(word, j);
    sum += part * float(row_scales[column / kGroup]);
  }
  return sum;
}

// A simdgroup per row of the shared expert.
kernel void shared_gate_up_one(constant Sizes& sizes [[buffer(0)]],
                               device const float* x [[buffer(1)]],
                               device const uchar* gate_codes [[buffer(2)]],
                               device const half* gate_scales [[buffer(3)]],
                               device const uchar* up_codes [[buffer(4)]],
                               device const half* up_scales [[buffer(5)]],
                               device float* hidden [[buffer(6)]],
                               uint group [[threadgroup_position_in_grid]],
                               uint lane [[thread_index_in_simdgroup]],
                               uint simdgroup [[simdgroup_index_in_threadgroup]],
                               uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint row = group * simdgroups + simdgroup;
  if (row >= sizes.shared) return;
  const float gate = simd_sum(linear_part(gate_codes, gate_scales, row, sizes.hidden, x, lane));
  const float up = simd_sum(linear_part(up_codes, up_scales, row, sizes.hidden, x, lane));
  if (lane == 0) hidden[row] = silu(gate) * up;
}

// A simdgroup per feature of the residual: everything is added here.
kernel void shared_down_one(constant Sizes& sizes [[buffer(0)]],
                            device const float* hidden [[buffer(1)]],
                            device const uchar* codes [[buffer(2)]],
                            device const half* scales [[buffer(3)]],
                            device const float* residual [[buffer(4)]],
                            device const float* routed [[buffer(5)]],
                            device float* out [[buffer(6)]],
                            uint group [[threadgroup_position_in_grid]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]],
                            uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint row = group * simdgroups + simdgroup;
  if (row >= sizes.hidden) return;
  const float sum = simd_sum(linear_part(codes, scales, row, sizes.shared, hidden, lane));
  if (lane == 0) out[row] = residual[row] + (routed[row] + sum);
}

// ---- Many tokens ---------------------------------------------------------------------------------

// One threadgroup: entries (a token and one of its slots) sorted by expert, and cut into tiles.
// order[entry] is the pair token * per_token + slot, places[pair] the entry.
kernel void experts_sort(constant Sizes& sizes [[buffer(0)]],
                         device const uint* experts [[buffer(1)]],
                         device uint* order [[buffer(2)]],
                         device uint* places [[buffer(3)]],
                         device Tile* tiles [[buffer(4)]],
                         device uint* tile_count [[buffer(5)]],
                         threadgroup uint* begins [[threadgroup(0)]],
                         uint index [[thread_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint pairs = sizes.tokens * sizes.per_token;
  const uint threads = simdgroups * kLanes;
  for (uint expert = index; expert < sizes.experts; expert += threads) {
    uint count = 0;
    for (uint pair = 0; pair < pairs; ++pair) count += experts[pair] == expert ? 1 : 0;
    begins[expert] = count;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (index == 0) {
    uint begin = 0, tile = 0;
    for (uint expert = 0; expert < sizes.experts; ++expert) {
      const uint count = begins[expert];
      begins[expert] = begin;
      for (uint done = 0; done < count; done += kTileRows) {
        tiles[tile].expert = expert;
        tiles[tile].first = begin + done;
        tiles[tile].count = min(kTileRows, count - done);
        ++tile;
      }
      begin += count;
    }
    *tile_count = tile;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint expert = index; expert < sizes.experts; expert += threads) {
    uint entry = begins[expert];
    for (uint pair = 0; pair < pairs; ++pair) {
      if (experts[pair] == expert) {
        order[entry] = pair;
        places[pair] = entry;
        ++entry;
      }
    }
  }
}

// A threadgroup of 128 threads multiplies [32, k] by [k, 64] in steps of 32 of k:
// left [32][32] and right [32][64] lie in threadgroup memory, the sums in its four simdgroups'
// matrices, 16 rows by 32 columns each.
struct Sums {
  simdgroup_float8x8 part[2][4];
};

inline void clear(thread Sums& sums) {
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 4; ++j) sums.part[i][j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
  }
}

// Each thread brings eight values of row index / 4, which lie at `row`; none where it is null.
inline void load_left(threadgroup float* left, device const float* row, uint k, uint index) {
  const uint column = index % 4 * 8;
  threadgroup float* to = left + index / 4 * 32 + column;
  for (uint j = 0; j < 8; ++j) to[j] = row == nullptr ? 0.0f : row[k + column + j];
}

// Of [in, out] matrices: each thread unpacks 16 columns of row k + index / 4, those from `column` on
// into columns index % 4 * 16 of `right`.
inline void load_right_rows(threadgroup float* right, device const uchar* codes,
                            device const half* scales, ulong first_row, uint columns, uint k,
                            uint column, uint index) {
  threadgroup float* to = right + index / 4 * kTileColumns + index % 4 * 16;
  if (column >= columns) {
    for (uint j = 0; j < 16; ++j) to[j] = 0.0f;
    return;
  }
  const ulong row = first_row + k + index / 4;
  device const uint* words = (device const uint*)(codes + row * (columns / 2)) + column / 8;
  const float scale = float(scales[row * (columns / kGroup) + column / kGroup]);
  for (uint j = 0; j < 16; ++j) to[j] = scale * code(words[j / 8], j % 8);
}

// Of a linear [out, in]: each thread unpacks 16 inputs, from k + index % 2 * 16 on, of `row` into
// column index / 2 of `right`.
inline void load_right_columns(threadgroup float* right, device const uchar* codes,
                               device const half* scales, uint row, uint rows, uint columns, uint k,
                               uint index) {
  const uint from = index % 2 * 16;
  threadgroup float* to = right + from * kTileColumns + index / 2;
  if (row >= rows) {
    for (uint j = 0; j < 16; ++j) to[j * kTileColumns] = 0.0f;
    return;
  }
  device const uint* words =
      (device const uint*)(codes + ulong(row) * (columns / 2)) + (k + from) / 8;
  const float scale = float(scales[ulong(row) * (columns / kGroup) + k / kGroup]);
  for (uint j = 0; j < 16; ++j) to[j * kTileColumns] = scale * code(words[j / 8], j % 8);
}

inline void multiply(threadgroup const float* left, threadgroup const float* right,
                     thread Sums& sums, uint simdgroup) {
  threadgroup const float* rows = left + simdgroup % 2 * 16 * 32;
  threadgroup const float* columns = right + simdgroup / 2 * 32;
  for (uint k = 0; k < 32; k += 8) {
    simdgroup_float8x8 a[2], b[4];
    for (uint i = 0; i < 2; ++i) simdgroup_load(a[i], rows + i * 8 * 32 + k, 32);
    for (uint j = 0; j < 4; ++j) simdgroup_load(b[j], columns + k * kTileColumns + j * 8, kTileColumns);
    for (uint i = 0; i < 2; ++i) {
      for (uint j = 0; j < 4; ++j) {
        simdgroup_multiply_accumulate(sums.part[i][j], a[i], b[j], sums.part[i][j]);
      }
    }
  }
}

// The sums as [32][64], over what was `left` and `right`.
inline void store(threadgroup float* tile, thread Sums& sums, uint simdgroup) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup float* to = tile + simdgroup % 2 * 16 * kTileColumns + simdgroup / 2 * 32;
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 4; ++j) {
      simdgroup_store(sums.part[i][j], to + i * 8 * kTileColumns + j * 8, kTileColumns);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// A threadgroup per 32 columns and tile: its 64 columns are gate and up of the same 32.
kernel void experts_gate_up_many(constant Sizes& sizes [[buffer(0)]],
                                 device const float* x [[buffer(1)]],
                                 device const uchar* codes [[buffer(2)]],
                                 device const half* scales [[buffer(3)]],
                                 device const uint* order [[buffer(4)]],
                                 device const Tile* tiles [[buffer(5)]],
                                 device const uint* tile_count [[buffer(6)]],
                                 device float* hidden [[buffer(7)]],
                                 threadgroup float* memory [[threadgroup(0)]],
                                 uint3 group [[threadgroup_position_in_grid]],
                                 uint index [[thread_index_in_threadgroup]],
                                 uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  if (group.y >= *tile_count) return;
  const Tile tile = tiles[group.y];
  threadgroup float* left = memory;
  threadgroup float* right = memory + kTileRows * 32;
  const uint entry = index / 4;
  device const float* row = nullptr;
  if (entry < tile.count) {
    row = x + ulong(order[tile.first + entry] / sizes.per_token) * sizes.hidden;
  }
  const uint half_of = index % 4 / 2;  // 0: gate, 1: up
  const uint column = half_of * sizes.width + group.x * 32 + index % 2 * 16;
  Sums sums;
  clear(sums);
  for (uint k = 0; k < sizes.hidden; k += 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    load_left(left, row, k, index);
    load_right_rows(right, codes, scales, ulong(tile.expert) * sizes.hidden, 2 * sizes.width, k, column,
                    index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply(left, right, sums, simdgroup);
  }
  store(memory, sums, simdgroup);
  for (uint i = index; i < tile.count * 32; i += 128) {
    const uint m = i / 32, n = i % 32;
    const float value = silu(memory[m * kTileColumns + n]) * memory[m * kTileColumns + 32 + n];
    hidden[ulong(tile.first + m) * sizes.width + group.x * 32 + n] = value;
  }
}

// A threadgroup per 64 columns and tile; each entry's output, weighted.
kernel void experts_down_many(constant Sizes& sizes [[buffer(0)]],
                              device const float* hidden [[buffer(1)]],
                              device const uchar* codes [[buffer(2)]],
                              device const half* scales [[buffer(3)]],
                              device const uint* order [[buffer(4)]],
                              device const Tile* tiles [[buffer(5)]],
                              device const uint* tile_count [[buffer(6)]],
                              device const float* weights [[buffer(7)]],
                              device float* routed [[buffer(8)]],
                              threadgroup float* memory [[threadgroup(0)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint index [[thread_index_in_threadgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  if (group.y >= *tile_count) return;
  const Tile tile = tiles[group.y];
  threadgroup float* left = memory;
  threadgroup float* right = memory + kTileRows * 32;
  const uint entry = index / 4;
  device const float* row = nullptr;
  if (entry < tile.count) row = hidden + ulong(tile.first + entry) * sizes.width;
  const uint column = group.x * kTileColumns + index % 4 * 16;
  Sums sums;
  clear(sums);
  for (uint k = 0; k < sizes.width; k += 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    load_left(left, row, k, index);
    load_right_rows(right, codes, scales, ulong(tile.expert) * sizes.width, sizes.hidden, k, column,
                    index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply(left, right, sums, simdgroup);
  }
  store(memory, sums, simdgroup);
  for (uint i = index; i < tile.count * kTileColumns; i += 128) {
    const uint m = i / kTileColumns, n = group.x * kTileColumns + i % kTileColumns;
    if (n < sizes.hidden) {
      routed[ulong(tile.first + m) * sizes.hidden + n] = weights[order[tile.first + m]] * memory[i];
    }
  }
}

// A threadgroup per 32 rows of the shared expert and 32 tokens: its 64 columns are gate and up.
kernel void shared_gate_up_many(constant Sizes& sizes [[buffer(0)]],
                                device const float* x [[buffer(1)]],
                                device const uchar* gate_codes [[buffer(2)]],
                                device const half* gate_scales [[buffer(3)]],
                                device const uchar* up_codes [[buffer(4)]],
                                device const half* up_scales [[buffer(5)]],
                                device float* hidden [[buffer(6)]],
                                threadgroup float* memory [[threadgroup(0)]],
                                uint3 group [[threadgroup_position_in_grid]],
                                uint index [[thread_index_in_threadgroup]],
                                uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float* left = memory;
  threadgroup float* right = memory + kTileRows * 32;
  const uint first = group.y * kTileRows;
  const uint count = min(kTileRows, sizes.tokens - first);
  device const float* row = nullptr;
  if (index / 4 < count) row = x + ulong(first + index / 4) * sizes.hidden;
  const bool is_up = index / 2 >= 32;
  device const uchar* codes = is_up ? up_codes : gate_codes;
  device const half* scales = is_up ? up_scales : gate_scales;
  const uint weight_row = group.x * 32 + index / 2 % 32;
  Sums sums;
  clear(sums);
  for (uint k = 0; k < sizes.hidden; k += 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    load_left(left, row, k, index);
    load_right_columns(right, codes, scales, weight_row, sizes.shared, sizes.hidden, k, index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply(left, right, sums, simdgroup);
  }
  store(memory, sums, simdgroup);
  for (uint i = index; i < count * 32; i += 128) {
    const uint m = i / 32, n = i % 32;
    const float value = silu(memory[m * kTileColumns + n]) * memory[m * kTileColumns + 32 + n];
    hidden[ulong(first + m) * sizes.shared + group.x * 32 + n] = value;
  }
}

// A threadgroup per 64 features and 32 tokens: everything is added here.
kernel void shared_down_many(constant Sizes& sizes [[buffer(0)]],
                             device const float* hidden [[buffer(1)]],
                             device const uchar* codes [[buffer(2)]],
                             device const half* scales [[buffer(3)]],
                             device const float* residual [[buffer(4)]],
                             device const float* routed [[buffer(5)]],
                             device const uint* places [[buffer(6)]],
                             device float* out [[buffer(7)]],
                             threadgroup float* memory [[threadgroup(0)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint index [[thread_index_in_threadgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float* left = memory;
  threadgroup float* right = memory + kTileRows * 32;
  const uint first = group.y * kTileRows;
  const uint count = min(kTileRows, sizes.tokens - first);
  device const float* row = nullptr;
  if (index / 4 < count) row = hidden + ulong(first + index / 4) * sizes.shared;
  const uint weight_row = group.x * kTileColumns + index / 2;
  Sums sums;
  clear(sums);
  for (uint k = 0; k < sizes.shared; k += 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    load_left(left, row, k, index);
    load_right_columns(right, codes, scales, weight_row, sizes.hidden, sizes.shared, k, index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply(left, right, sums, simdgroup);
  }
  store(memory, sums, simdgroup);
  for (uint i = index; i < count * kTileColumns; i += 128) {
    const uint token = first + i / kTileColumns, n = group.x * kTileColumns + i % kTileColumns;
    if (n >= sizes.hidden) continue;
    float sum = memory[i];
    for (uint slot = 0; slot < sizes.per_token; ++slot) {
      sum += routed[ulong(places[token * sizes.per_token + slot]) * sizes.hidden + n];
    }
    out[ulong(token) * sizes.hidden + n] = residual[ulong(token) * sizes.hidden + n] + sum;
  }
}
