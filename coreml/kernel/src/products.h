// Puts the loops of an integer precision together. A template of the loops (vectors_avx2.h).
#pragma once

#include "expert_many.h"
#include "expert_one.h"
#include "linear_many.h"
#include "linear_one.h"

namespace mobilemoe {

// LinearInner, ExpertInner: of one token; Tile: of many.
template <typename LinearInner, typename ExpertInner, typename Tile>
struct RoundedProducts {
  using One = LinearOne<LinearInner>;
  using Many = LinearMany<Tile>;
  using ExpertsOne = ExpertOne<ExpertInner>;
  using ExpertsMany = ExpertMany<Tile>;

  static size_t linear_bytes(int columns) {
    return One::bytes(columns) > Many::bytes(columns) ? One::bytes(columns) : Many::bytes(columns);
  }
  static void prepare_linear(const float* x, int columns, bool single, uint8_t* prepared) {
    single ? One::prepare(x, columns, prepared) : Many::prepare(x, columns, prepared);
  }
  static void linear(const LinearTask& task) {
    task.single ? One::multiply(task) : Many::multiply(task);
  }
  static size_t linear_scratch_bytes(int columns, int count) {
    return count == 1 ? 0 : Many::scratch_bytes(columns);
  }

  static size_t expert_bytes(int inputs) {
    return ExpertsOne::bytes(inputs) > ExpertsMany::bytes(inputs) ? ExpertsOne::bytes(inputs)
                                                                  : ExpertsMany::bytes(inputs);
  }
  static void prepare_expert(const float* x, int inputs, bool single, uint8_t* prepared) {
    single ? ExpertsOne::prepare(x, inputs, prepared) : ExpertsMany::prepare(x, inputs, prepared);
  }
  static void expert(const ExpertTask& task) {
    task.single ? ExpertsOne::multiply(task) : ExpertsMany::multiply(task);
  }
  static size_t expert_scratch_bytes(int inputs, int outputs, int count) {
    return count == 1 ? ExpertsOne::scratch_bytes(outputs) : ExpertsMany::scratch_bytes(inputs);
  }

  static constexpr Products table() {
    return {linear_bytes, prepare_linear, linear, linear_scratch_bytes, Tile::kOutputs,
            expert_bytes, prepare_expert, expert, expert_scratch_bytes};
  }
};

}  // namespace mobilemoe
