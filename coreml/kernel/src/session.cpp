#include "session.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>

#include "checks.h"
#include "status.h"

using namespace mobilemoe;

namespace {

constexpr int kMostContext = 1 << 20;
constexpr int kMostTokensTogether = 4096;

int blocks_of(int positions) { return (positions + kBlock - 1) / kBlock; }

// Zeroed, and untouched until it is used: a long context costs nothing before it is filled.
Memory allocate(size_t bytes) {
  Memory memory(std::calloc(bytes, 1));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

// A session serves one call at a time.
class Occupied {
 public:
  explicit Occupied(Session& session) : session_(session), mine_(!session.busy.exchange(true)) {}
  ~Occupied() {
    if (mine_) session_.busy = false;
  }
  Occupied(const Occupied&) = delete;
  Occupied& operator=(const Occupied&) = delete;
  bool mine() const { return mine_; }

 private:
  Session& session_;
  const bool mine_;
};

Status fail_busy(Error* error) {
  return fail(error, MOBILEMOE_BUSY, "Another thread is inside a call on this session.");
}

// What a saved cache begins with; all must agree except the position.
struct SavedHead {
  char magic[8];
  int32_t layers, kv_heads, head_dim, cache_type, position, reserved;
};
static_assert(sizeof(SavedHead) == 32, "no padding");

SavedHead saved_head(const Session& session, int32_t position) {
  return {{'M', 'M', 'o', 'E', 'K', 'V', '0', '1'},
          static_cast<int32_t>(session.model.layers.size()),
          session.model.kv_heads,
          session.model.head_dim,
          static_cast<int32_t>(session.cache_type),
          position,
          0};
}

size_t saved_bytes(const Session& session, int32_t position) {
  return sizeof(SavedHead) + session.model.layers.size() * session.model.kv_heads *
                                 blocks_of(position) * session.block_bytes;
}

Status feed_blocks(Session& session, const int32_t* tokens, int32_t count, int32_t which,
                   float* logits, Error* error) {
  const int32_t start = session.position;
  for (int32_t done = 0; done < count;) {
    const int32_t size = std::min(count - done, session.block);
    // Others may take a turn between two blocks.
    const std::lock_guard<std::mutex> turn(session.model.runtime.pool.turn());
    MOBILEMOE_TRY(forward(session, tokens + done, start + done, size, error));
    done += size;
    if (which == MOBILEMOE_LOGITS_ALL) {
      compute_logits(session, 0, size,
                     logits + static_cast<size_t>(done - size) * session.model.vocab_size);
    } else if (which == MOBILEMOE_LOGITS_LAST && done == count) {
      compute_logits(session, size - 1, 1, logits);
    }
  }
  session.position = start + count;
  return succeed(error);
}

}  // namespace

mobilemoe_status mobilemoe_session_create(mobilemoe_model* model,
                                          const mobilemoe_session_options* options,
                                          mobilemoe_session** session, mobilemoe_error* error) {
  if (session != nullptr) *session = nullptr;
  if (model == nullptr || options == nullptr || session == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "session_create: a pointer is NULL.");
  }
  if (options->context < 1 || options->context > kMostContext) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "context is %d: 1 to %d are possible.",
                options->context, kMostContext);
  }
  if (options->cache_type < MOBILEMOE_CACHE_FLOAT32 || options->cache_type > MOBILEMOE_CACHE_INT8) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "There is no cache type %d: 0 to 2 are known.",
                options->cache_type);
  }
  if (options->block < 1 || options->block > kMostTokensTogether) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "block is %d: 1 to %d are possible.", options->block,
                kMostTokensTogether);
  }
  const auto type = static_cast<CacheType>(options->cache_type);
  const int block = std::min(options->block, options->context);
  const size_t one_block = block_bytes(type, model->head_dim);
  const size_t head = blocks_of(options->context) * one_block;
  const size_t layer = head * model->kv_heads;
  try {
    Arena counter;
    ForwardScratch(counter, *model, options->context, block);
    Memory cache = allocate(layer * model->layers.size() + Arena::kAlignment);
    Memory scratch = allocate(counter.bytes());
    Arena arena(scratch.get());
    uint8_t* cache_bytes = Arena(cache.get()).take<uint8_t>(0);
    *session = new mobilemoe_session{*model,
                                     options->context,
                                     block,
                                     type,
                                     layer,
                                     head,
                                     one_block,
                                     std::move(cache),
                                     std::move(scratch),
                                     cache_bytes,
                                     ForwardScratch(arena, *model, options->context, block)};
  } catch (const std::bad_alloc&) {
    return fail(error, MOBILEMOE_OUT_OF_MEMORY, "No memory for a session of %d positions.",
                options->context);
  }
  for (int p = 0; p < options->context; ++p) {
    rope_angles(model->rope_periods.data(), model->head_dim, p,
                (*session)->scratch.angles + static_cast<size_t>(p) * model->head_dim);
  }
  return succeed(error);
}

void mobilemoe_session_destroy(mobilemoe_session* session) { delete session; }

mobilemoe_status mobilemoe_session_feed(mobilemoe_session* session, const int32_t* tokens,
                                        int32_t count, int32_t which, float* logits,
                                        mobilemoe_error* error) {
  if (session == nullptr || tokens == nullptr ||
      (logits == nullptr && which != MOBILEMOE_LOGITS_NONE)) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "session_feed: a pointer is NULL.");
  }
  if (which < MOBILEMOE_LOGITS_NONE || which > MOBILEMOE_LOGITS_ALL) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "There is no choice of logits %d: 0 to 2 are known.",
                which);
  }
  const Occupied occupied(*session);
  if (!occupied.mine()) return fail_busy(error);
  const int32_t position = session->position;
  if (count < 1) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "session_feed: %d tokens; it takes one or more.",
                count);
  }
  if (count > session->context - position) {
    return fail(error, MOBILEMOE_CONTEXT_FULL,
                "%d tokens do not fit: %d of the context's %d positions are taken.", count,
                position, session->context);
  }
  for (int32_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= session->model.vocab_size) {
      return fail(error, MOBILEMOE_BAD_ARGUMENT,
                  "Token %d is %d: the vocabulary has ids 0 to %d.", i, tokens[i],
                  session->model.vocab_size - 1);
    }
  }
  return feed_blocks(*session, tokens, count, which, logits, error);
}

int32_t mobilemoe_session_position(const mobilemoe_session* session) { return session->position; }

mobilemoe_status mobilemoe_session_rewind(mobilemoe_session* session, int32_t position,
                                          mobilemoe_error* error) {
  if (session == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "session_rewind: the session is NULL.");
  }
  const Occupied occupied(*session);
  if (!occupied.mine()) return fail_busy(error);
  if (position < 0 || position > session->position) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "Rewinding to %d: positions 0 to %d are possible.",
                position, session->position.load());
  }
  session->position = position;
  session->last_count = 0;
  return succeed(error);
}

mobilemoe_status mobilemoe_session_experts(mobilemoe_session* session, int32_t count,
                                           int32_t* experts, mobilemoe_error* error) {
  if (session == nullptr || experts == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "session_experts: a pointer is NULL.");
  }
  const Occupied occupied(*session);
  if (!occupied.mine()) return fail_busy(error);
  const Model& model = session->model;
  const size_t slots = routed_slots(model);
  if (slots == 0) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "This model has no routed experts.");
  }
  if (count < 1 || count > session->last_count) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT,
                "The experts of %d tokens: the last %d that were computed together are known.", count,
                session->last_count);
  }
  for (size_t layer = 0; layer < model.layers.size(); ++layer) {
    const int32_t* chosen = session->scratch.chosen + layer * session->block * slots;
    std::memcpy(experts + layer * count * slots, chosen + (session->last_count - count) * slots,
                count * slots * sizeof(int32_t));
  }
  return succeed(error);
}

void mobilemoe_session_cancel(mobilemoe_session* session) { session->cancelled = true; }

size_t mobilemoe_session_saved_bytes(const mobilemoe_session* session) {
  return saved_bytes(*session, session->position);
}

mobilemoe_status mobilemoe_session_save(mobilemoe_session* session, void* bytes, size_t size,
                                        mobilemoe_error* error) {
  if (session == nullptr || bytes == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "session_save: a pointer is NULL.");
  }
  const Occupied occupied(*session);
  if (!occupied.mine()) return fail_busy(error);
  const int32_t position = session->position;
  if (size != saved_bytes(*session, position)) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "Saving needs %zu bytes, not %zu.",
                saved_bytes(*session, position), size);
  }
  const SavedHead head = saved_head(*session, position);
  auto* out = static_cast<uint8_t*>(bytes);
  std::memcpy(out, &head, sizeof head);
  out += sizeof head;
  const size_t used = blocks_of(position) * session->block_bytes;
  for (size_t layer = 0; layer < session->model.layers.size(); ++layer) {
    for (int kv_head = 0; kv_head < session->model.kv_heads; ++kv_head, out += used) {
      std::memcpy(out, session->layer_cache(layer).block(kv_head, 0), used);
    }
  }
  return succeed(error);
}

mobilemoe_status mobilemoe_session_load(mobilemoe_session* session, const void* bytes, size_t size,
                                        mobilemoe_error* error) {
  if (session == nullptr || bytes == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "session_load: a pointer is NULL.");
  }
  const Occupied occupied(*session);
  if (!occupied.mine()) return fail_busy(error);
  SavedHead head{};
  if (size >= sizeof head) std::memcpy(&head, bytes, sizeof head);
  const SavedHead expected = saved_head(*session, head.position);
  if (size < sizeof head || std::memcmp(&head, &expected, sizeof head) != 0) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT,
                "These bytes are not a cache that was saved from this model and cache type.");
  }
  if (head.position < 0 || head.position > session->context) {
    return fail(error, MOBILEMOE_CONTEXT_FULL,
                "The saved cache has %d positions; this session's context is %d.", head.position,
                session->context);
  }
  if (size != saved_bytes(*session, head.position)) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "The saved cache has %zu bytes; %zu were expected.",
                size, saved_bytes(*session, head.position));
  }
  const auto* in = static_cast<const uint8_t*>(bytes) + sizeof head;
  const size_t used = blocks_of(head.position) * session->block_bytes;
  for (size_t layer = 0; layer < session->model.layers.size(); ++layer) {
    for (int kv_head = 0; kv_head < session->model.kv_heads; ++kv_head, in += used) {
      std::memcpy(session->layer_cache(layer).block(kv_head, 0), in, used);
    }
  }
  session->position = head.position;
  session->last_count = 0;
  return succeed(error);
}
