#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bytes.h"

namespace mobilemoe {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Softmax over several chunks, one after the other: what was seen so far.
struct Running {
  float largest = kNothing;
  float sum = 0;
};

// Adds a chunk to what was seen: both are brought to the larger maximum.
void merge(Running* running, float* mixed, float largest, float sum, const float* chunk,
           int width) {
  if (largest == kNothing && sum == 0) return;
  const float top = std::max(running->largest, largest);
  const float before = running->sum == 0 ? 0.0f : std::exp(running->largest - top);
  const float now = std::exp(largest - top);
  running->sum = running->sum * before + sum * now;
  running->largest = top;
  for (int f = 0; f < width; ++f) mixed[f] = mixed[f] * before + chunk[f] * now;
}

template <typename T, typename From, typename Narrow>
void store(const LayerCache& cache, int head_dim, int head, int position, const From* key,
           const From* value, const Narrow& narrow) {
  auto* keys = reinterpret_cast<T*>(cache.block(head, position / kBlock)) + position % kBlock;
  auto* values = reinterpret_cast<T*>(cache.block(head, position / kBlock)) + kBlock * head_dim +
                 position % kBlock * value_width(head_dim);
  for (int f = 0; f < head_dim; ++f) keys[f * kBlock] = narrow(key[f], 0);
  for (int f = 0; f < head_dim; ++f) values[f] = narrow(value[f], 1);
}

// The range of positions that a query at `position` sees.
int first_visible(const AttentionShape& shape, int position) {
  return shape.sliding_window > 0 ? std::max(0, position + 1 - shape.sliding_window) : 0;
}

}  // namespace

void rope_angles(const float* periods, int head_dim, int position, float* cos_sin) {
  for (int i = 0; i < head_dim / 2; ++i) {
    const double angle = position / static_cast<double>(periods[i]);
    cos_sin[i] = static_cast<float>(std::cos(angle));
    cos_sin[head_dim / 2 + i] = static_cast<float>(std::sin(angle));
  }
}

void rotate_head(const AttentionShape& shape, const float* cos_sin, float* head) {
  const int pairs = shape.head_dim / 2;
  float squares = 0;
  for (int i = 0; i < pairs; ++i) {
    const float a = head[2 * i], b = head[2 * i + 1];
    const float c = cos_sin[i], s = cos_sin[pairs + i];
    head[2 * i] = a * c - b * s;
    head[2 * i + 1] = a * s + b * c;
    squares += head[2 * i] * head[2 * i] + head[2 * i + 1] * head[2 * i + 1];
  }
  if (!shape.qk_norm) return;
  const float scale =
      1.0f / std::sqrt(squares / static_cast<float>(shape.head_dim) + shape.qk_norm_eps);
  for (int f = 0; f < shape.head_dim; ++f) head[f] *= scale;
}

void store_position(const LayerCache& cache, int head_dim, int head, int position,
                    const float* key, const float* value) {
  switch (cache.type) {
    case CacheType::float32:
      store<float>(cache, head_dim, head, position, key, value, [](float x, int) { return x; });
      return;
    case CacheType::float16:
      store<uint16_t>(cache, head_dim, head, position, key, value,
                      [](float x, int) { return float16_from_float(x); });
      return;
    case CacheType::int8: {
      const float* rows[2] = {key, value};
      float inverse[2];
      auto* scales = reinterpret_cast<float*>(cache.block(head, position / kBlock) +
                                              kBlock * (head_dim + value_width(head_dim)));
      for (int which = 0; which < 2; ++which) {
        float largest = 1e-30f;
        bool finite = true;
        for (int f = 0; f < head_dim; ++f) {
          largest = std::max(largest, std::fabs(rows[which][f]));
          finite = finite && std::isfinite(rows[which][f]);
        }
        // What is not finite has no integer: all that is computed with the row is to be NaN.
        scales[which * kBlock + position % kBlock] =
            finite ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
        inverse[which] = 127 / largest;
      }
      store<int8_t>(cache, head_dim, head, position, key, value, [&](float x, int which) {
        const float q = x * inverse[which];
        // 0 for what is not a number; the largest may come out a little above 127.
        return static_cast<int8_t>(q == q ? std::lrint(std::clamp(q, -127.0f, 127.0f)) : 0);
      });
      return;
    }
  }
}

void store_row(const RowCache& cache, int head_dim, int head, int position, const float* key,
               const float* value) {
  const size_t row = cache.row_bytes(head_dim), at = head * cache.head_bytes + position * row;
  const auto write = [&](const float* from, uint8_t* to) {
    if (cache.type == CacheType::float32) {
      std::memcpy(to, from, row);
      return;
    }
    for (int f = 0; f < head_dim; ++f) {
      const uint16_t half = float16_from_float(from[f]);
      std::memcpy(to + 2 * f, &half, sizeof half);
    }
  };
  write(key, cache.keys + at);
  write(value, cache.values + at);
}

void copy_to_blocks(const RowCache& rows, const LayerCache& blocks, int head_dim, int head,
                    int position) {
  const size_t at = head * rows.head_bytes + position * rows.row_bytes(head_dim);
  const uint8_t* key = rows.keys + at;
  const uint8_t* value = rows.values + at;
  if (rows.type == CacheType::float32) {
    store<float>(blocks, head_dim, head, position, reinterpret_cast<const float*>(key),
                 reinterpret_cast<const float*>(value), [](float x, int) { return x; });
  } else {
    store<uint16_t>(blocks, head_dim, head, position, reinterpret_cast<const uint16_t*>(key),
                    reinterpret_cast<const uint16_t*>(value), [](uint16_t x, int) { return x; });
  }
}

AttendScratch::AttendScratch(Arena& arena, const AttentionShape& shape, int context,
                             int thread_count) {
  const size_t width = value_width(shape.head_dim);
  const size_t chunks = context / kChunk + 1;
  partial = arena.take<float>(shape.heads * chunks * (2 + width));
  thread_stride = round_up(kMostQueries * (kChunk + 2 * width), 16);
  threads = arena.take<float>(thread_stride * thread_count);
}

// Queries that share a key/value head are taken together, so that each key and value is read once
// for up to kMostQueries of them. Chunks of positions are summed apart and then merged in their
// order, whether one thread walks them (many tokens) or several do (one token).
// `place(kv_head, chunk, &task)` says where a chunk of a head lies, for `kernel`.
template <typename Place>
static void attend_over(const Place& place, void (*kernel)(AttendTask&), Runtime& runtime,
                        const AttentionShape& shape, const float* q, size_t q_stride, int position,
                        int count, float* y, AttendScratch& scratch) {
  const int head_dim = shape.head_dim, width = value_width(head_dim);
  const int group = shape.heads / shape.kv_heads;
  const int queries = count * group;  // of a key/value head: token-major
  const int tiles = (queries + kMostQueries - 1) / kMostQueries;

  const auto fill = [&](int kv_head, int tile, int chunk, int thread, AttendTask* task) {
    float* piece = scratch.threads + thread * scratch.thread_stride;
    task->count = std::min(kMostQueries, queries - tile * kMostQueries);
    task->head_dim = head_dim;
    task->weights = piece;
    place(kv_head, chunk, task);
    int blocks = 0;
    for (int i = 0; i < task->count; ++i) {
      const int query = tile * kMostQueries + i, token = query / group;
      const int head = kv_head * group + query % group;
      task->queries[i] = q + token * q_stride + static_cast<size_t>(head) * head_dim;
      const int last = position + token;
      task->begin[i] = std::clamp(first_visible(shape, last) - chunk * kChunk, 0, kChunk);
      task->end[i] = std::clamp(last + 1 - chunk * kChunk, task->begin[i], kChunk);
      task->mixed[i] = piece + kMostQueries * kChunk + i * width;
      blocks = std::max(blocks, (task->end[i] + kBlock - 1) / kBlock);
    }
    task->blocks = blocks;
  };

  if (count == 1) {
    const int first = first_visible(shape, position) / kChunk;
    const int chunks = position / kChunk + 1 - first;
    const size_t piece = 2 + width;
    runtime.pool.run(shape.kv_heads * tiles * chunks, [&](int index, int thread) {
      const int chunk = index % chunks, tile = index / chunks % tiles;
      const int kv_head = index / chunks / tiles;
      AttendTask task;
      fill(kv_head, tile, first + chunk, thread, &task);
      kernel(task);
      for (int i = 0; i < task.count; ++i) {
        const int head = kv_head * group + tile * kMostQueries + i;
        float* out = scratch.partial + (static_cast<size_t>(head) * chunks + chunk) * piece;
        out[0] = task.largest[i];
        out[1] = task.sum[i];
        std::copy(task.mixed[i], task.mixed[i] + width, out + 2);
      }
    });
    float* mixed = scratch.threads;
    for (int head = 0; head < shape.heads; ++head) {
      Running running;
      std::fill(mixed, mixed + width, 0.0f);
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const float* part = scratch.partial + (static_cast<size_t>(head) * chunks + chunk) * piece;
        merge(&running, mixed, part[0], part[1], part + 2, width);
      }
      for (int f = 0; f < head_dim; ++f) y[head * head_dim + f] = mixed[f] / running.sum;
    }
    return;
  }

  runtime.pool.run(shape.kv_heads * tiles, [&](int index, int thread) {
    const int kv_head = index / tiles, tile = index % tiles;
    Running running[kMostQueries];
    float* mixed = scratch.threads + thread * scratch.thread_stride +
                   kMostQueries * (static_cast<size_t>(kChunk) + width);
    std::fill(mixed, mixed + kMostQueries * width, 0.0f);
    const int first_token = tile * kMostQueries / group;
    const int last_token = (std::min(queries, (tile + 1) * kMostQueries) - 1) / group;
    const int last = (position + last_token) / kChunk;
    for (int chunk = first_visible(shape, position + first_token) / kChunk; chunk <= last; ++chunk) {
      AttendTask task;
      fill(kv_head, tile, chunk, thread, &task);
      kernel(task);
      for (int i = 0; i < task.count; ++i) {
        merge(&running[i], mixed + i * width, task.largest[i], task.sum[i], task.mixed[i], width);
      }
    }
    for (int i = 0; i < kMostQueries && tile * kMostQueries + i < queries; ++i) {
      const int query = tile * kMostQueries + i;
      const size_t head = kv_head * group + query % group;
      float* out = y + (static_cast<size_t>(query / group) * shape.heads + head) * head_dim;
      for (int f = 0; f < head_dim; ++f) out[f] = mixed[i * width + f] / running[i].sum;
    }
  });
}

void attend(Runtime& runtime, const AttentionShape& shape, const LayerCache& cache, const float* q,
            size_t q_stride, int position, int count, float* y, AttendScratch& scratch) {
  const auto place = [&](int kv_head, int chunk, AttendTask* task) {
    task->block = cache.block(kv_head, chunk * kChunkBlocks);
  };
  attend_over(place, runtime.kernels.attend[static_cast<int>(cache.type)], runtime, shape, q,
              q_stride, position, count, y, scratch);
}

void attend(Runtime& runtime, const AttentionShape& shape, const RowCache& cache, const float* q,
            size_t q_stride, int position, int count, float* y, AttendScratch& scratch) {
  const auto place = [&](int kv_head, int chunk, AttendTask* task) {
    const size_t first =
        kv_head * cache.head_bytes + chunk * kChunk * cache.row_bytes(shape.head_dim);
    task->keys = cache.keys + first;
    task->values = cache.values + first;
  };
  attend_over(place, runtime.kernels.attend_rows[static_cast<int>(cache.type)], runtime, shape, q,
              q_stride, position, count, y, scratch);
}

}  // namespace mobilemoe
