// The operators on arrays from standard input, for tests of CPUs that only an emulator has
// (emulated_arm64.py): operator_server CODE_PATH.
//
// A request is int32 (operator, precision, threads, three sizes, number of arrays), then
// each array as int64 bytes and the bytes. The answer is the results as such an array, float32.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "mobilemoe.h"

namespace {

using Bytes = std::vector<unsigned char>;

mobilemoe_error error;

void read(void* to, size_t bytes) {
  if (bytes > 0 && std::fread(to, bytes, 1, stdin) != 1) std::exit(0);  // no more requests
}

struct Request {
  int32_t operation, precision, threads, sizes[3], array_count;
};

class Call {
 public:
  Call(const Request& request, mobilemoe_runtime* runtime) : s_(request.sizes), runtime_(runtime) {
    for (int i = 0; i < request.array_count; ++i) {
      int64_t bytes;
      read(&bytes, sizeof bytes);
      arrays_.emplace_back(bytes);
      read(arrays_.back().data(), bytes);
    }
  }

  mobilemoe_status linear(std::vector<float>* y) {
    result(y, s_[2] * s_[0]);
    const mobilemoe_int4 weight = int4(0);
    room(mobilemoe_linear_int4_workspace(runtime_, s_[2], s_[0], s_[1]));
    return mobilemoe_linear_int4(runtime_, &weight, s_[0], s_[1], floats(2), s_[2], y->data(),
                                 room_.data(), room_.size(), &error);
  }
  mobilemoe_status rms_norm(std::vector<float>* y) {
    result(y, s_[0] * s_[1]);
    const mobilemoe_tensor weight = tensor(1);
    return mobilemoe_rms_norm(runtime_, floats(0), &weight, s_[0], s_[1], floats(2)[0], y->data(),
                              &error);
  }
  mobilemoe_status head(std::vector<float>* y) {
    result(y, s_[2] * s_[0]);
    const mobilemoe_int4 table = int4(0);
    const mobilemoe_tensor norm = tensor(3);
    room(mobilemoe_head_workspace(runtime_, s_[2], s_[0], s_[1]));
    return mobilemoe_head(runtime_, floats(2), &norm, floats(4)[0], &table, s_[0], s_[1], s_[2],
                          y->data(), room_.data(), room_.size(), &error);
  }
  // The results: y, new keys, new values.
  mobilemoe_status attention(std::vector<float>* y) {
    mobilemoe_attention_shape shape;
    std::memcpy(&shape, arrays_[0].data(), sizeof shape);
    const int position = s_[0], count = s_[1];
    const size_t rows = static_cast<size_t>(count) * shape.head_dim;
    result(y, rows * (shape.heads + 2 * shape.kv_heads));
    float* keys = y->data() + rows * shape.heads;
    room(mobilemoe_attention_workspace(runtime_, &shape, position, count));
    return mobilemoe_attention(runtime_, &shape, floats(1), floats(2), floats(3), position, count,
                               floats(4), floats(5), floats(6), keys, keys + rows * shape.kv_heads,
                               y->data(), room_.data(), room_.size(), &error);
  }
  mobilemoe_status moe_ffn(std::vector<float>* y) {
    mobilemoe_moe_shape shape;
    std::memcpy(&shape, arrays_[0].data(), sizeof shape);
    result(y, static_cast<size_t>(s_[0]) * shape.hidden_size);
    const mobilemoe_moe_weights weights{tensor(2), tensor(3), int4(4),  int4(6),
                                        int4(8),   int4(10),  int4(12)};
    room(mobilemoe_moe_ffn_workspace(runtime_, &shape, s_[0]));
    return mobilemoe_moe_ffn(runtime_, &shape, &weights, floats(1), s_[0], y->data(),
                             room_.data(), room_.size(), &error);
  }

 private:
  mobilemoe_tensor tensor(int i) const { return {arrays_[i].data(), arrays_[i].size()}; }
  mobilemoe_int4 int4(int i) const { return {tensor(i), tensor(i + 1)}; }
  const float* floats(int i) const { return reinterpret_cast<const float*>(arrays_[i].data()); }
  // NaN wherever nothing is written, or read too early.
  static void result(std::vector<float>* y, size_t count) {
    y->resize(count);
    std::memset(y->data(), 0xFF, count * sizeof(float));
  }
  void room(size_t bytes) { room_.assign(bytes, 0xFF); }

  const int32_t* s_;
  mobilemoe_runtime* runtime_;
  std::vector<Bytes> arrays_;
  Bytes room_;
};

}  // namespace

int main(int, char** arguments) {
  using Operator = mobilemoe_status (Call::*)(std::vector<float>*);
  const Operator operators[] = {&Call::linear, &Call::rms_norm, &Call::head, &Call::attention,
                                &Call::moe_ffn};
  for (Request request;;) {
    read(&request, sizeof request);
    const mobilemoe_runtime_options options{request.precision, request.threads, arguments[1]};
    mobilemoe_runtime* runtime;
    int32_t status = mobilemoe_runtime_create(&options, &runtime, &error);
    std::vector<float> y;
    if (status == MOBILEMOE_OK) {
      Call call(request, runtime);
      status = (call.*operators[request.operation])(&y);
      mobilemoe_runtime_destroy(runtime);
    }
    if (status != MOBILEMOE_OK) {
      std::fprintf(stderr, "%s\n", error.message);
      return 1;
    }
    const int64_t bytes = y.size() * sizeof(float);
    std::fwrite(&bytes, sizeof bytes, 1, stdout);
    std::fwrite(y.data(), 1, bytes, stdout);
    std::fflush(stdout);
  }
}
