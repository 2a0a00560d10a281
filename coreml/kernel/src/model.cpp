#include "model.h"

#include <cmath>
#include <memory>
#include <new>
#include <system_error>

#include "checks.h"
#include "status.h"

namespace mobilemoe {
namespace {

constexpr int32_t kMostLayers = 1024;

mobilemoe_moe_shape moe_shape(const mobilemoe_config& config) {
  return {config.hidden_size,         config.intermediate_size, config.intermediate_size_mlp,
          config.num_local_experts,   config.num_experts_per_tok, config.norm_topk_prob,
          config.routed_scaling_factor};
}

Status check_config(const mobilemoe_config& config, Error* error) {
  MOBILEMOE_TRY(check_size(config.vocab_size, 1, "vocab_size", error));
  MOBILEMOE_TRY(check_size(config.num_hidden_layers, 1, "num_hidden_layers", error));
  if (config.num_hidden_layers > kMostLayers) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "num_hidden_layers is %d: at most %d.",
                config.num_hidden_layers, kMostLayers);
  }
  MOBILEMOE_TRY(check_moe_shape(moe_shape(config), error));
  MOBILEMOE_TRY(check_attention_shape({config.num_attention_heads, config.num_key_value_heads,
                                       config.head_dim, 1, config.use_qk_norm, 0, 0},
                                      error));
  MOBILEMOE_TRY(check_size(config.num_attention_heads * config.head_dim, kGroup,
                           "num_attention_heads x head_dim", error));
  if (config.rope_periods == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "rope_periods is NULL.");
  }
  for (int i = 0; i < config.head_dim / 2; ++i) {
    if (!(config.rope_periods[i] > 0)) {
      return fail(error, MOBILEMOE_BAD_ARGUMENT, "rope_periods[%d] is not above 0.", i);
    }
  }
  if (!(config.rms_norm_eps > 0)) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "rms_norm_eps is not above 0.");
  }
  return MOBILEMOE_OK;
}

Status check_layer(const mobilemoe_config& config, const mobilemoe_layer_weights& layer,
                   bool with_experts, Error* error) {
  const size_t d = config.hidden_size;
  const auto head_dim = static_cast<size_t>(config.head_dim);
  const size_t q = config.num_attention_heads * head_dim, kv = config.num_key_value_heads * head_dim;
  MOBILEMOE_TRY(check_vector(layer.input_layernorm, d, "input_layernorm", error));
  MOBILEMOE_TRY(check_int4(layer.q_proj, 1, q, d, "q_proj", error));
  MOBILEMOE_TRY(check_int4(layer.k_proj, 1, kv, d, "k_proj", error));
  MOBILEMOE_TRY(check_int4(layer.v_proj, 1, kv, d, "v_proj", error));
  MOBILEMOE_TRY(check_int4(layer.o_proj, 1, d, q, "o_proj", error));
  MOBILEMOE_TRY(check_vector(layer.post_attention_layernorm, d, "post_attention_layernorm", error));
  if (layer.sliding_window < 0) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "sliding_window is %d.", layer.sliding_window);
  }
  return check_moe_weights(layer.feed_forward, moe_shape(config), with_experts, error);
}

Status check_expert_source(const mobilemoe_config& config, const mobilemoe_expert_source& source,
                           Error* error) {
  if (config.num_local_experts == 0) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "There are no routed experts to be read.");
  }
  if (source.read == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "expert_source: read is NULL.");
  }
  const size_t least = ExpertCache::least_bytes(moe_shape(config));
  if (source.memory_bytes < least) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT,
                "%zu bytes of memory for experts are too few: this model needs at least %zu bytes.",
                source.memory_bytes, least);
  }
  return MOBILEMOE_OK;
}

// Says in which layer: `error` has the sentence of `check_layer`.
Status in_layer(int layer, Status status, Error* error) {
  if (status == MOBILEMOE_OK || error == nullptr) return status;
  const Error inner = *error;
  return fail(error, status, "Layer %d: %.200s", layer, inner.message);
}

std::vector<float> widened(const mobilemoe_tensor& tensor, size_t size) {
  std::vector<float> values(size);
  read_vector(tensor, size, values.data());
  return values;
}

Layer make_layer(const mobilemoe_config& config, const mobilemoe_layer_weights& weights) {
  const int d = config.hidden_size;
  const int q = config.num_attention_heads * config.head_dim;
  const int kv = config.num_key_value_heads * config.head_dim;
  Layer layer;
  layer.input_norm = widened(weights.input_layernorm, d);
  layer.post_attention_norm = widened(weights.post_attention_layernorm, d);
  layer.q = linear_of(weights.q_proj, q, d);
  layer.k = linear_of(weights.k_proj, kv, d);
  layer.v = linear_of(weights.v_proj, kv, d);
  layer.o = linear_of(weights.o_proj, d, q);
  layer.attention = {config.num_attention_heads,
                     config.num_key_value_heads,
                     config.head_dim,
                     config.use_qk_norm != 0,
                     config.rms_norm_eps,
                     static_cast<float>(1 / std::sqrt(static_cast<double>(config.head_dim))),
                     weights.sliding_window};
  if (config.num_local_experts > 0) {
    layer.expert_bias = widened(weights.feed_forward.expert_bias, config.num_local_experts);
  }
  layer.moe = moe_of(weights.feed_forward, moe_shape(config), layer.expert_bias.data());
  return layer;
}

}  // namespace

void embed(const Linear& table, const int32_t* tokens, int count, float* x) {
  const size_t groups = table.columns / kGroup;
  for (int t = 0; t < count; ++t) {
    const size_t first = tokens[t] * groups;
    for (size_t g = 0; g < groups; ++g) {
      const float scale = load_float16(table.scales + (first + g) * 2);
      const uint8_t* codes = table.codes + (first + g) * (kGroup / 2);
      for (int i = 0; i < kGroup / 2; ++i) {
        *x++ = static_cast<float>(code_of(codes[i] & 15u)) * scale;
        *x++ = static_cast<float>(code_of(codes[i] >> 4)) * scale;
      }
    }
  }
}

}  // namespace mobilemoe

using namespace mobilemoe;

mobilemoe_status mobilemoe_model_create(mobilemoe_runtime* runtime, const mobilemoe_config* config,
                                        const mobilemoe_weights* weights, mobilemoe_model** model,
                                        mobilemoe_error* error) {
  if (model != nullptr) *model = nullptr;
  if (runtime == nullptr || config == nullptr || weights == nullptr || model == nullptr ||
      weights->layers == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "model_create: a pointer is NULL.");
  }
  MOBILEMOE_TRY(check_config(*config, error));
  const mobilemoe_expert_source* source = weights->expert_source;
  if (source != nullptr) MOBILEMOE_TRY(check_expert_source(*config, *source, error));
  const int d = config->hidden_size, layers = config->num_hidden_layers;
  MOBILEMOE_TRY(check_int4(weights->embed_tokens, 1, config->vocab_size, d, "embed_tokens", error));
  MOBILEMOE_TRY(check_vector(weights->norm, d, "norm", error));
  for (int i = 0; i < layers; ++i) {
    MOBILEMOE_TRY(
        in_layer(i, check_layer(*config, weights->layers[i], source == nullptr, error), error));
  }
  try {
    std::unique_ptr<Model> made(new Model{
        *runtime, config->vocab_size, d, config->num_attention_heads, config->num_key_value_heads,
        config->head_dim, config->rms_norm_eps,
        std::vector<float>(config->rope_periods, config->rope_periods + config->head_dim / 2),
        linear_of(weights->embed_tokens, config->vocab_size, d), widened(weights->norm, d), {}, nullptr});
    made->layers.reserve(layers);
    for (int i = 0; i < layers; ++i) {
      made->layers.push_back(make_layer(*config, weights->layers[i]));
    }
    if (source != nullptr) {
      made->expert_cache = std::make_unique<ExpertCache>(moe_shape(*config), layers, *source);
      for (int i = 0; i < layers; ++i) {
        made->layers[i].moe.cache = made->expert_cache.get();
        made->layers[i].moe.layer = i;
      }
    }
    *model = made.release();
  } catch (const std::bad_alloc&) {
    return fail(error, MOBILEMOE_OUT_OF_MEMORY, "No memory for a model's handle%s.",
                source == nullptr ? "" : " and its experts");
  } catch (const std::system_error&) {
    return fail(error, MOBILEMOE_OUT_OF_MEMORY, "The system did not start threads for reading.");
  }
  return succeed(error);
}

void mobilemoe_model_destroy(mobilemoe_model* model) { delete model; }

size_t mobilemoe_least_expert_memory(const mobilemoe_config* config) {
  if (config == nullptr || config->num_local_experts == 0 ||
      check_moe_shape(moe_shape(*config), nullptr) != MOBILEMOE_OK) {
    return 0;
  }
  return ExpertCache::least_bytes(moe_shape(*config));
}

void mobilemoe_model_expert_counters(const mobilemoe_model* model,
                                     mobilemoe_expert_counters* counters) {
  const bool cached = model->expert_cache != nullptr;
  *counters = cached ? model->expert_cache->counters() : mobilemoe_expert_counters{};
}

mobilemoe_status mobilemoe_rope_periods(int32_t head_dim, double theta, double factor,
                                        double low_freq_factor, double high_freq_factor,
                                        double original_max_position_embeddings, float* periods,
                                        mobilemoe_error* error) {
  MOBILEMOE_TRY(check_size(head_dim, 2, "head_dim", error));
  if (periods == nullptr || !(theta > 0) || !(factor > 0)) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT,
                "rope_periods: theta and factor must be above 0, and periods not NULL.");
  }
  constexpr double kTwoPi = 6.283185307179586;
  for (int i = 0; i < head_dim / 2; ++i) {
    const double period = std::pow(theta, 2.0 * i / head_dim);
    // How often the pair turns within the original context: from high_freq_factor on it is kept,
    // below low_freq_factor it is stretched by `factor`, in between the frequencies are blended.
    const double turns = original_max_position_embeddings / (kTwoPi * period);
    double kept;
    if (factor == 1) {
      kept = 1;
    } else if (high_freq_factor > low_freq_factor) {
      kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
      kept = kept < 0 ? 0 : kept > 1 ? 1 : kept;
    } else {
      kept = turns >= low_freq_factor ? 1 : 0;  // the published config: nothing lies between
    }
    periods[i] = static_cast<float>(1 / (kept / period + (1 - kept) / (period * factor)));
  }
  return succeed(error);
}
