// mobilemoe::DecoderLayer: a whole layer, with its key/value cache in tensors as onnxruntime-genai
// hands them on.
//
// x [batch, tokens, d], attention_mask int64 [batch, total], past_key and past_value
// [batch, kv_heads, rows, head_dim], rotation [positions, head_dim] (cos, then sin, of a position's
// pairs), then the weights -> y [batch, tokens, d], present_key, present_value.
//
// The cache is float32 or float16. It grows (rows = total - tokens, and present has total) or has room (rows >= total), and then
// present may be the very memory of past. The mask tells which positions count: zeros before the first one
// are padding on the left; zeros behind it and before the new tokens were padding on the right, and tokens
// are written over that, as GroupQueryAttention does.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "checks.h"
#include "feed_forward.h"
#include "operators.h"

namespace mobilemoe::ort {
namespace {

// From this many tokens on, rows of the cache are brought into blocks first, whose loops use each load for
// more queries.
constexpr int kTokensForBlocks = 8;

enum Input : size_t {
  kX, kMask, kPastKey, kPastValue, kRotation, kInputNorm, kQ, kK = 8, kV = 10, kO = 12, kFeedForward = 14
};

// One row of the batch: where its valid positions begin in the cache, where its new tokens are
// written, and how many of those come before that, as padding.
struct Row {
  int first, write, padding;
};

struct Scratch {
  Scratch(Arena& arena, const Runtime& runtime, const AttentionShape& shape,
          const FeedForward& feed_forward, int count, int positions, const CacheType* blocks)
      : normed(arena.take<float>(static_cast<size_t>(count) * feed_forward.hidden_size())),
        qkv(arena.take<float>(static_cast<size_t>(count) * (shape.heads + 2 * shape.kv_heads) *
                              shape.head_dim)),
        mixed(arena.take<float>(static_cast<size_t>(count) * shape.heads * shape.head_dim)),
        delta(arena.take<float>(static_cast<size_t>(count) * feed_forward.hidden_size())),
        angles(arena.take<float>(static_cast<size_t>(count) * shape.head_dim)),
        attend(arena, shape, positions, runtime.pool.threads()),
        feed_forward(arena, runtime, feed_forward.shape(), count) {
    const int d = feed_forward.hidden_size(), width = shape.heads * shape.head_dim;
    const Products& products = runtime.products;
    prepared.stride = round_up(std::max(products.linear_bytes(d), products.linear_bytes(width)),
                               Arena::kAlignment);
    prepared.data = arena.take<uint8_t>(prepared.stride * count);
    thread_stride = round_up(std::max(products.linear_scratch_bytes(d, count),
                                      products.linear_scratch_bytes(width, count)),
                             Arena::kAlignment);
    threads = arena.take<uint8_t>(thread_stride * runtime.pool.threads());
    if (blocks == nullptr) return;
    cache.type = *blocks;
    cache.block_bytes = block_bytes(cache.type, shape.head_dim);
    cache.head_bytes = (positions + kBlock - 1) / kBlock * cache.block_bytes;
    cache.data = arena.take<uint8_t>(cache.head_bytes * shape.kv_heads);
  }

  float* normed;
  float* qkv;
  float* mixed;
  float* delta;
  float* angles;
  AttendScratch attend;
  FeedForward::Scratch feed_forward;
  Prepared prepared;
  uint8_t* threads;
  size_t thread_stride;
  LayerCache cache{};  // of one row of the batch, in blocks
};

// What a call is about.
struct Sizes {
  int64_t batch, tokens, rows;  // rows of present
  const float* x;
  float* y;
  RowCache present;  // of the batch's first row; the others follow it
};

class DecoderLayerKernel : public Kernel {
 public:
  DecoderLayerKernel(const NodeInfo& node, std::shared_ptr<Engine> engine, CacheType type)
      : engine_(std::move(engine)),
        type_(type),
        runtime_(engine_->runtime(node.string("precision", "int16"))),
        eps_(node.number("norm_eps")),
        feed_forward_(node, kFeedForward, "post_attention_norm") {
    const int64_t heads = node.integer("heads");
    const int64_t kv_heads = node.integer("kv_heads");
    const int64_t head_dim = node.integer("head_dim");
    mobilemoe_error error;
    const mobilemoe_attention_shape shape{static_cast<int32_t>(heads),
                                          static_cast<int32_t>(kv_heads),
                                          static_cast<int32_t>(head_dim),
                                          1,
                                          node.integer("qk_norm", 1) != 0,
                                          eps_,
                                          0};
    check(check_attention_shape(shape, &error), error);
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)));
    shape_ = {shape.heads,
              shape.kv_heads,
              shape.head_dim,
              shape.qk_norm != 0,
              node.number("qk_norm_eps", eps_),
              node.number("score_scale", scale),
              0};
    const int64_t d = feed_forward_.hidden_size(), width = heads * head_dim;
    const int64_t kv_width = kv_heads * head_dim;
    input_norm_ = node.vector(kInputNorm, "input_norm", d);
    const auto matrix = [&](size_t index, const char* name, int64_t rows, int64_t columns) {
      return linear_of(node.int4(index, name, {rows}, columns), static_cast<int>(rows),
                       static_cast<int>(columns));
    };
    q_ = matrix(kQ, "q", width, d);
    k_ = matrix(kK, "k", kv_width, d);
    v_ = matrix(kV, "v", kv_width, d);
    o_ = matrix(kO, "o", d, width);
    rotation_ = node.weight(kRotation, "rotation");
    if (rotation_.dimensions.size() != 2 || rotation_.dimensions[1] != head_dim) {
      refuse("rotation has the shape %s; [positions, %lld] is expected.",
             text_of(rotation_.dimensions).c_str(), static_cast<long long>(head_dim));
    }
  }

  void compute(const Call& call) override {
    const Tensor x = call.input(kX), mask = call.input(kMask);
    const Tensor past_key = call.input(kPastKey), past_value = call.input(kPastValue);
    const int64_t d = feed_forward_.hidden_size();
    if (x.dimensions.size() != 3 || x.dimensions[2] != d) {
      refuse("x has the shape %s; [batch, tokens, %lld] is expected.",
             text_of(x.dimensions).c_str(), static_cast<long long>(d));
    }
    const int64_t batch = x.dimensions[0], tokens = x.dimensions[1];
    if (mask.dimensions.size() != 2 || mask.dimensions[0] != batch ||
        mask.dimensions[1] < tokens) {
      refuse("attention_mask has the shape %s; with x of %s it must be [%lld, past and new tokens].",
             text_of(mask.dimensions).c_str(), text_of(x.dimensions).c_str(),
             static_cast<long long>(batch));
    }
    const int64_t total = mask.dimensions[1];
    const int64_t past_rows = past_key.dimensions.size() == 4 ? past_key.dimensions[2] : 0;
    const Dimensions past{batch, shape_.kv_heads, past_rows, shape_.head_dim};
    check_dimensions("past_key", past_key, past);
    check_dimensions("past_value", past_value, past);
    if (past_rows < total - tokens) {
      refuse("attention_mask covers %lld past positions; past_key has %lld.",
             static_cast<long long>(total - tokens), static_cast<long long>(past_rows));
    }
    const std::vector<Row> rows = rows_of(mask, tokens, total);
    const int64_t present_rows = std::max(past_rows, total);
    const Dimensions present{batch, shape_.kv_heads, present_rows, shape_.head_dim};
    const size_t row_bytes = shape_.head_dim * element_bytes(type_);
    const Sizes sizes{batch,
                      tokens,
                      present_rows,
                      x.floats(),
                      call.floats(0, x.dimensions),
                      {type_, static_cast<uint8_t*>(call.output(1, present)),
                       static_cast<uint8_t*>(call.output(2, present)), present_rows * row_bytes}};
    const int64_t count = batch * tokens;
    const int block = static_cast<int>(std::min<int64_t>(count, kBlockTokens));
    int positions = 1;
    for (const Row& row : rows) {
      positions = std::max(positions, static_cast<int>(row.write + tokens - row.first));
    }
    const CacheType* blocks = tokens >= kTokensForBlocks ? &type_ : nullptr;
    Arena counter;
    Scratch(counter, runtime_, shape_, feed_forward_, std::max(block, 1), positions, blocks);
    const std::lock_guard<std::mutex> turn(runtime_.pool.turn());
    copy_past(past_key, rows, sizes, sizes.present.keys);
    copy_past(past_value, rows, sizes, sizes.present.values);
    if (count == 0) return;
    Arena arena(engine_->room(counter.bytes()));
    Scratch scratch(arena, runtime_, shape_, feed_forward_, block, positions, blocks);
    for (int64_t first = 0; first < count; first += block) {
      compute_block(sizes, rows, first, static_cast<int>(std::min<int64_t>(count - first, block)),
                    scratch);
    }
  }

 private:
  std::vector<Row> rows_of(const Tensor& mask, int64_t tokens, int64_t total) const {
    std::vector<Row> rows;
    for (int64_t b = 0; b < mask.dimensions[0]; ++b) {
      const int64_t* begin = mask.integers() + b * total;
      const int64_t* end = begin + total;
      const int64_t* news = end - tokens;
      const int64_t* one = std::find_if(begin, end, [](int64_t m) { return m != 0; });
      const int64_t first = one - begin;
      const int64_t write = one < news ? first + (news - one) - std::count(one, news, 0) : news - begin;
      const Row row{static_cast<int>(first), static_cast<int>(write),
                    static_cast<int>(std::max<int64_t>(first - write, 0))};
      const int64_t last = write + tokens - 1 - first;
      if (last >= rotation_.dimensions[0]) {
        refuse("the sequence reaches position %lld; the model's context has %lld positions.",
               static_cast<long long>(last), static_cast<long long>(rotation_.dimensions[0]));
      }
      rows.push_back(row);
    }
    return rows;
  }

  // The rows of past that count, into present, unless that is the same memory.
  void copy_past(const Tensor& past, const std::vector<Row>& rows, const Sizes& sizes,
                 uint8_t* present) const {
    if (past.data == present) return;
    const size_t row = sizes.present.row_bytes(shape_.head_dim), head_bytes = past.dimensions[2] * row;
    const auto* from = static_cast<const uint8_t*>(past.data);
    runtime_.pool.run(static_cast<int>(sizes.batch * shape_.kv_heads), [&](int head, int) {
      const size_t used = rows[head / shape_.kv_heads].write * row;
      if (used > 0) std::memcpy(present + head * sizes.present.head_bytes, from + head * head_bytes, used);
    });
  }

  // Tokens `first` to first + count - 1 of the batch's rows one after the other.
  void compute_block(const Sizes& sizes, const std::vector<Row>& rows, int64_t first, int count,
                     Scratch& s) const {
    const auto d = static_cast<size_t>(feed_forward_.hidden_size());
    const size_t head_dim = shape_.head_dim, width = shape_.heads * head_dim;
    const size_t kv_width = shape_.kv_heads * head_dim, qkv_width = width + 2 * kv_width;
    const float* x = sizes.x + first * d;
    const Cut cut = cut_tokens(count);

    runtime_.pool.run(cut.tasks(), [&](int task, int) {
      for (int t = cut.begin(task); t < cut.end(task); ++t) {
        float* normed = s.normed + t * d;
        runtime_.kernels.rms_norm(x + t * d, input_norm_.data(), static_cast<int>(d), eps_, normed);
        runtime_.products.prepare_linear(normed, static_cast<int>(d), count == 1,
                                         s.prepared.data + t * s.prepared.stride);
      }
    });
    multiply_qkv(runtime_, {q_, k_, v_, o_}, s.prepared, count, s.qkv, qkv_width, s.threads,
                 s.thread_stride);

    runtime_.pool.run(cut.tasks(), [&](int task, int) {
      for (int t = cut.begin(task); t < cut.end(task); ++t) {
        const int64_t b = (first + t) / sizes.tokens, at = (first + t) % sizes.tokens;
        const Row& row = rows[b];
        float* q = s.qkv + t * qkv_width;
        float* k = q + width;
        const float* v = k + kv_width;
        if (at >= row.padding) {
          float* angles = s.angles + t * head_dim;
          std::memcpy(angles, rotation_.floats() + (row.write + at - row.first) * head_dim,
                      head_dim * sizeof(float));
          for (int head = 0; head < shape_.heads; ++head) {
            rotate_head(shape_, angles, q + head * head_dim);
          }
          for (size_t i = 0; i < width; ++i) q[i] *= shape_.score_scale;
          for (int head = 0; head < shape_.kv_heads; ++head) {
            rotate_head(shape_, angles, k + head * head_dim);
          }
        }
        for (int head = 0; head < shape_.kv_heads; ++head) {
          store_row(sizes.present, shape_.head_dim, static_cast<int>(b * shape_.kv_heads) + head,
                    static_cast<int>(row.write + at), k + head * head_dim, v + head * head_dim);
        }
      }
    });
    for (int64_t at = first; at < first + count;) {
      const int64_t b = at / sizes.tokens;
      const int64_t end = std::min(first + count, (b + 1) * sizes.tokens);
      attend_row(sizes, rows[b], b, static_cast<int>(at - b * sizes.tokens),
                 static_cast<int>(end - at), s.qkv + (at - first) * qkv_width, qkv_width,
                 s.mixed + (at - first) * width, s);
      at = end;
    }

    prepare_linear(runtime_, s.mixed, count, static_cast<int>(width), s.prepared);
    const Moe& moe = feed_forward_.moe();
    linear(runtime_, o_, s.prepared, count, s.delta, s.threads, s.thread_stride,
           {&moe.shared_gate, &moe.shared_up});
    feed_forward_.compute(runtime_, x, s.delta, count, sizes.y + first * d, s.feed_forward,
                          nullptr);
  }

  // Tokens `at` to at + count - 1 of a row of the batch.
  void attend_row(const Sizes& sizes, const Row& row, int64_t b, int at, int count, const float* q,
                  size_t q_stride, float* mixed, Scratch& s) const {
    const size_t width = static_cast<size_t>(shape_.heads) * shape_.head_dim;
    const int skipped = std::clamp(row.padding - at, 0, count);
    std::fill(mixed, mixed + skipped * width, 0.0f);
    at += skipped;
    count -= skipped;
    if (count == 0) return;
    const int position = row.write + at - row.first;
    RowCache cache = sizes.present;
    const size_t begin = b * shape_.kv_heads * cache.head_bytes + row.first * cache.row_bytes(shape_.head_dim);
    cache.keys += begin;
    cache.values += begin;
    q += skipped * q_stride;
    mixed += skipped * width;
    if (count < kTokensForBlocks) {
      attend(runtime_, shape_, cache, q, q_stride, position, count, mixed, s.attend);
      return;
    }
    const Cut filled{position + count, kBlock};
    runtime_.pool.run(shape_.kv_heads * filled.tasks(), [&](int task, int) {
      const int head = task / filled.tasks(), block = task % filled.tasks();
      for (int p = filled.begin(block); p < filled.end(block); ++p) {
        copy_to_blocks(cache, s.cache, shape_.head_dim, head, p);
      }
    });
    attend(runtime_, shape_, s.cache, q, q_stride, position, count, mixed, s.attend);
  }

  const std::shared_ptr<Engine> engine_;
  const CacheType type_;
  Runtime& runtime_;
  const float eps_;
  const FeedForward feed_forward_;
  AttentionShape shape_{};
  std::vector<float> input_norm_;
  Linear q_, k_, v_, o_;
  Tensor rotation_;
};

OperatorType decoder_layer(ElementType cache, decltype(OperatorType::create) create) {
  return {"DecoderLayer",
          {kFloat,   kInt64,   cache,    cache,    kFloat,   kFloat,   kUint8,
           kFloat16, kUint8,   kFloat16, kUint8,   kFloat16, kUint8,   kFloat16,
           kFloat,   kFloat,   kFloat,   kUint8,   kFloat16, kUint8,   kFloat16,
           kUint8,   kFloat16, kUint8,   kFloat16, kUint8,   kFloat16},
          {kFloat, cache, cache},
          create};
}

template <CacheType kType>
std::unique_ptr<Kernel> create(const NodeInfo& node, std::shared_ptr<Engine> engine) {
  return std::make_unique<DecoderLayerKernel>(node, std::move(engine), kType);
}

}  // namespace

const OperatorType kDecoderLayerOperator = decoder_layer(kFloat, create<CacheType::float32>);
const OperatorType kDecoderLayerHalfOperator = decoder_layer(kFloat16, create<CacheType::float16>);

}  // namespace mobilemoe::ort
