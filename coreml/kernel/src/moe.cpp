#include "moe.h"

#include <algorithm>

namespace mobilemoe {
namespace {

Prepared take_prepared(Arena& arena, size_t bytes, size_t count) {
  const size_t stride = round_up(bytes, Arena::kAlignment);
  return {arena.take<uint8_t>(stride * count), stride};
}

// Columns per task of the routed experts: `width` columns in groups of 32, so that a task has about
// the work of 32 tokens and 32 columns; alone, a token's experts are cut only when there are more
// threads than experts, for whole rows are read fastest.
Cut cut_columns(int width, int count, int entries_per_expert, int used, int threads) {
  const int groups = width / kGroup;
  int chunk;
  if (count == 1) {
    const int parts = (threads + used - 1) / used;
    chunk = (groups + parts - 1) / parts;
  } else {
    chunk = std::clamp(kGroup / std::max(entries_per_expert, 1), 1, groups);
  }
  return {width, chunk * kGroup};
}

ExpertMatrix behind(const ExpertMatrix& first, int expert, size_t values) {
  return {first.codes + expert * (values / 2), first.scales + expert * (values / kGroup) * 2};
}

// Of an expert that lies in memory.
ExpertWeights weights_of(const Moe& moe, int expert) {
  const size_t values = static_cast<size_t>(moe.shape.hidden_size) * moe.shape.intermediate_size;
  return {behind(moe.first_expert.gate_up, expert, 2 * values),
          behind(moe.first_expert.down, expert, values)};
}

}  // namespace

MoeScratch::MoeScratch(Arena& arena, const Products& products, const mobilemoe_moe_shape& shape,
                       int count, int thread_count)
    : dispatch{} {
  const int d = shape.hidden_size, w = shape.intermediate_size, e = shape.num_local_experts;
  const int shared = shape.intermediate_size_mlp;
  const auto n = static_cast<size_t>(count);
  const size_t slots = e == 0 ? 0 : n * shape.num_experts_per_tok;
  thread_stride = 0;
  if (shared > 0) {
    linear_x = take_prepared(arena, products.linear_bytes(d), n);
    linear_hidden = take_prepared(arena, products.linear_bytes(shared), n);
    thread_stride = std::max(products.linear_scratch_bytes(d, count),
                             products.linear_scratch_bytes(shared, count));
  }
  shared_gate = arena.take<float>(n * shared);
  shared_up = arena.take<float>(n * shared);
  if (e > 0) {
    expert_x = take_prepared(arena, products.expert_bytes(d), n);
    expert_hidden = take_prepared(arena, products.expert_bytes(w), slots);
    thread_stride = std::max({thread_stride, products.expert_scratch_bytes(d, 2 * w, count),
                              products.expert_scratch_bytes(w, d, count)});
  }
  logits = arena.take<float>(n * e);
  experts = arena.take<int32_t>(slots);
  weights = arena.take<float>(slots);
  dispatch.counts = arena.take<int32_t>(e);
  dispatch.used = arena.take<int32_t>(e);
  dispatch.begins = arena.take<int32_t>(e + 1);
  dispatch.tokens = arena.take<int32_t>(slots);
  dispatch.entries = arena.take<int32_t>(slots);
  used = arena.take<ExpertWeights>(e);
  numbers = arena.take<int32_t>(slots);
  gate_up = arena.take<float>(slots * 2 * w);
  routed = arena.take<float>(slots * d);
  thread_stride = round_up(thread_stride, Arena::kAlignment);
  threads = arena.take<uint8_t>(thread_stride * thread_count);
}

Status moe_ffn(Runtime& runtime, const Moe& moe, const float* x, int count, float* y,
               MoeScratch& s, const Linear* next, Error* error) {
  const mobilemoe_moe_shape& shape = moe.shape;
  const Products& products = runtime.products;
  const bool single = count == 1;
  const auto d = static_cast<size_t>(shape.hidden_size);
  const auto w = static_cast<size_t>(shape.intermediate_size);
  const auto shared = static_cast<size_t>(shape.intermediate_size_mlp);
  const int expert_count = shape.num_local_experts;
  const int slots = expert_count > 0 ? shape.num_experts_per_tok : 0;
  const auto scratch_of = [&](int thread) { return s.threads + thread * s.thread_stride; };

  // 1. The forms of x that the products read.
  const Cut tokens = cut_tokens(count);
  runtime.pool.run(tokens.tasks(), [&](int task, int) {
    for (int t = tokens.begin(task); t < tokens.end(task); ++t) {
      const float* row = x + t * d;
      if (shared > 0) {
        products.prepare_linear(row, shape.hidden_size, single,
                                s.linear_x.data + t * s.linear_x.stride);
      }
      if (expert_count > 0) {
        products.prepare_expert(row, shape.hidden_size, single,
                                s.expert_x.data + t * s.expert_x.stride);
      }
    }
  });

  // 2. Router, and the shared expert up to its hidden values, which need no routing. Experts that must
  // be read are asked for before the shared expert is computed.
  const Cut router = single ? Cut{expert_count, 8} : cut_tokens(expert_count > 0 ? count : 0);
  const auto route = [&](int task, int) {
    const int begin = router.begin(task), end = router.end(task);
    if (single) {
      runtime.kernels.router(x, moe.router + begin * d * sizeof(float), end - begin,
                             shape.hidden_size, s.logits + begin);
      return;
    }
    for (int t = begin; t < end; ++t) {
      runtime.kernels.router(x + t * d, moe.router, expert_count, shape.hidden_size,
                             s.logits + static_cast<size_t>(t) * expert_count);
    }
  };
  const Cut shared_rows = cut_rows(products, moe.shared_gate.rows, shape.hidden_size, count);
  const auto begin_shared = [&](int task, int thread) {
    const int begin = shared_rows.begin(task), end = shared_rows.end(task);
    multiply_rows(products, moe.shared_gate, s.linear_x, count, begin, end, s.shared_gate, shared,
                  scratch_of(thread));
    multiply_rows(products, moe.shared_up, s.linear_x, count, begin, end, s.shared_up, shared,
                  scratch_of(thread));
    for (int t = 0; t < count; ++t) {
      runtime.kernels.swiglu(s.shared_gate + t * shared + begin, s.shared_up + t * shared + begin,
                             end - begin);
    }
  };

  // 3. Choice of experts; the shared expert's hidden values prepared.
  Dispatch& dispatch = s.dispatch;
  const auto choose = [&](int t) {
    if (expert_count == 0) return;
    select_experts(shape, s.logits + static_cast<size_t>(t) * expert_count, moe.expert_bias,
                   s.experts + t * slots, s.weights + t * slots);
  };
  const auto prepare_shared = [&](int t) {
    if (shared == 0) return;
    products.prepare_linear(s.shared_gate + t * shared, static_cast<int>(shared), single,
                            s.linear_hidden.data + t * s.linear_hidden.stride);
  };
  const auto for_tokens = [&](const auto& f) {
    runtime.pool.run(tokens.tasks(), [&](int task, int) {
      for (int t = tokens.begin(task); t < tokens.end(task); ++t) f(t);
    });
  };
  if (moe.cache == nullptr) {
    runtime.pool.run(router.tasks(), route, shared_rows.tasks(), begin_shared);
    for_tokens([&](int t) {
      choose(t);
      prepare_shared(t);
    });
    count_by_expert(s.experts, count, slots, expert_count, &dispatch);
    for (int i = 0; i < dispatch.used_count; ++i) s.used[i] = weights_of(moe, dispatch.used[i]);
  } else {
    runtime.pool.run(router.tasks(), route);
    for_tokens(choose);
    count_by_expert(s.experts, count, slots, expert_count, &dispatch);
    moe.cache->begin(moe.layer, count, dispatch.counts, dispatch.used, dispatch.used_count);
    runtime.pool.run(shared_rows.tasks(), begin_shared);
    for_tokens(prepare_shared);
  }
  if (expert_count > 0) sort_by_expert(s.experts, count, slots, &dispatch);

  const int entries = count * slots;
  const int entries_per_expert = dispatch.used_count > 0 ? entries / dispatch.used_count : 0;
  const int threads = runtime.pool.threads();
  const Cut out_rows = cut_rows(products, moe.shared_down.rows, static_cast<int>(shared), count);
  const auto finish_shared = [&](int task, int thread) {
    multiply_rows(products, moe.shared_down, s.linear_hidden, count, out_rows.begin(task),
                  out_rows.end(task), y, d, scratch_of(thread));
  };

  // The experts first to last - 1 of dispatch.used, with the rest of the shared expert or without.
  const auto compute_experts = [&](int first, int last, bool with_shared) {
    const int used = last - first;
    const Cut hidden = used > 0 ? cut_columns(static_cast<int>(w), count, entries_per_expert, used,
                                              threads)
                                : Cut{0, 1};
    const Cut out = used > 0 ? cut_columns(static_cast<int>(d), count, entries_per_expert, used,
                                           threads)
                             : Cut{0, 1};

    // 4. Routed experts up to their hidden values, and the rest of the shared expert.
    runtime.pool.run(
        used * hidden.tasks(),
        [&](int task, int thread) {
          const int expert = first + task / hidden.tasks();
          const int part = task % hidden.tasks();
          const ExpertMatrix& matrix = s.used[expert].gate_up;
          const int entry = dispatch.begins[expert];
          const int expert_entries = dispatch.begins[expert + 1] - entry;
          const int width = static_cast<int>(w);
          float* z = s.gate_up + entry * 2 * w;
          ExpertTask product{s.expert_x.data,
                             s.expert_x.stride,
                             dispatch.tokens + entry,
                             expert_entries,
                             single,
                             shape.hidden_size,
                             2 * width,
                             matrix.codes,
                             matrix.scales,
                             0,
                             2 * width,
                             z,
                             2 * w,
                             scratch_of(thread),
                             nullptr,
                             nullptr};
          int owner;
          if (!runtime.pool.ends_share(used * hidden.tasks(), task, &owner)) {
            const ExpertMatrix& after = s.used[first + (task + 1) / hidden.tasks()].gate_up;
            product.next_codes = after.codes;
            product.next_scales = after.scales;
          } else if (single) {
            if (with_shared) ask_for_share(runtime, moe.shared_down, owner);
            const int task_after = runtime.pool.share_begin(used * out.tasks(), owner);
            const ExpertMatrix& after = s.used[first + task_after / out.tasks()].down;
            prefetch_stretch(after.codes, after.scales);
          }
          const int begin = hidden.begin(part), end = hidden.end(part);
          if (end - begin == width) {
            products.expert(product);
          } else {
            for (const int half : {0, width}) {
              product.begin = half + begin;
              product.end = half + end;
              products.expert(product);
            }
          }
          for (int i = 0; i < expert_entries; ++i) {
            runtime.kernels.swiglu(z + i * 2 * w + begin, z + i * 2 * w + w + begin, end - begin);
          }
        },
        with_shared ? out_rows.tasks() : 0, finish_shared);
    if (used == 0) return;

    // 5. The routed hidden values prepared.
    const int first_entry = dispatch.begins[first];
    const Cut prepared = cut_tokens(dispatch.begins[last] - first_entry);
    runtime.pool.run(prepared.tasks(), [&](int task, int) {
      for (int i = first_entry + prepared.begin(task); i < first_entry + prepared.end(task); ++i) {
        s.numbers[i] = i;
        products.prepare_expert(s.gate_up + i * 2 * w, static_cast<int>(w), single,
                                s.expert_hidden.data + i * s.expert_hidden.stride);
      }
    });

    // 6. Routed experts, second half.
    runtime.pool.run(used * out.tasks(), [&](int task, int thread) {
      const int expert = first + task / out.tasks();
      const int part = task % out.tasks();
      const int entry = dispatch.begins[expert];
      const ExpertMatrix& matrix = s.used[expert].down;
      ExpertMatrix after{nullptr, nullptr};
      int owner;
      if (!runtime.pool.ends_share(used * out.tasks(), task, &owner)) {
        after = s.used[first + (task + 1) / out.tasks()].down;
      } else if (single && next != nullptr && last == dispatch.used_count) {
        ask_for_share(runtime, *next, owner);
      }
      products.expert({s.expert_hidden.data, s.expert_hidden.stride, s.numbers + entry,
                       dispatch.begins[expert + 1] - entry, single, static_cast<int>(w),
                       static_cast<int>(d), matrix.codes, matrix.scales, out.begin(part),
                       out.end(part), s.routed + entry * d, d, scratch_of(thread), after.codes,
                       after.scales});
    });
  };
  if (moe.cache == nullptr) {
    compute_experts(0, dispatch.used_count, true);
  } else {
    runtime.pool.run(out_rows.tasks(), finish_shared);
    for (int first = 0, last; first < dispatch.used_count; first = last) {
      last = moe.cache->wait(first, s.used);
      if (last == 0) break;
      compute_experts(first, last, false);
      moe.cache->release(first, last);
    }
    MOBILEMOE_TRY(moe.cache->end(error));
  }

  // 7. Each token's sum, slot by slot.
  for_tokens([&](int t) {
    float* sum = y + t * d;
    if (shared == 0) std::fill(sum, sum + d, 0.0f);
    for (int slot = 0; slot < slots; ++slot) {
      const float weight = s.weights[t * slots + slot];
      const float* routed = s.routed + dispatch.entries[t * slots + slot] * d;
      for (size_t c = 0; c < d; ++c) sum[c] += weight * routed[c];
    }
  });
  return MOBILEMOE_OK;
}

}  // namespace mobilemoe
