// Many tokens times a routed expert, with rounded activations. A template of the loops
// (vectors_avx2.h): what is particular to a precision and a CPU is in `Tile`, as for linear_many.h.
//
// A group of 32 outputs at a time: its codes are unpacked into panels, its scales become ratios to
// the largest of each block of 32 inputs. A few tokens at a time are multiplied with the ratios,
// rounded again ("folded"), and multiplied with the panels.
//
// Tile, besides what linear_many.h names:
//   kFolded                    tokens that are folded together
//   fold(...)                  see fold_int8_avx2.h
//   fill_expert(codes, row_bytes, part, to)   unpacks 32 rows of outputs kOutputs * part on
//   store_outputs(sums, y)     kOutputs sums, back into the order of the columns
#pragma once

#include "kernels.h"
#include "linear_many.h"
#include "rounding.h"

namespace mobilemoe {

// Of a prepared token's values and of a panel's ratios.
constexpr float kFullWord = 32767.0f;

template <typename Tile>
class ExpertMany {
  using V = typename Tile::V;
  using Value = typename Tile::Value;
  using TilePanel = Panel<typename Tile::Code, Tile::kOutputs>;
  static constexpr int kParts = kGroup / Tile::kOutputs;

  // Scratch of a group of 32 outputs.
  struct Scratch {
    static size_t bytes(int inputs) {
      const size_t blocks = inputs / kGroup;
      return kParts * TilePanel::bytes(inputs) + blocks * sizeof(float) +
             Tile::kFolded * blocks * (sizeof(float) + sizeof(int32_t)) +
             inputs * sizeof(int16_t) + Tile::kFolded * inputs * sizeof(Value);
    }
    Scratch(uint8_t* memory, int inputs) : panels(memory) {
      const size_t blocks = inputs / kGroup;
      largest = reinterpret_cast<float*>(memory + kParts * TilePanel::bytes(inputs));
      steps = largest + blocks;
      initial = reinterpret_cast<int32_t*>(steps + Tile::kFolded * blocks);
      ratios = reinterpret_cast<int16_t*>(initial + Tile::kFolded * blocks);
      x = reinterpret_cast<Value*>(ratios + inputs);
    }

    uint8_t* panels;
    float* largest;    // [blocks]: the largest scale
    float* steps;      // [kFolded][blocks]
    int32_t* initial;  // [kFolded][blocks]
    int16_t* ratios;   // [inputs]: scale over the largest of its block
    Value* x;          // [kFolded][inputs]
  };

 public:
  static size_t scratch_bytes(int inputs) { return Scratch::bytes(inputs); }

  // Of a prepared token: values of 16 bits, then the largest of each block.
  static size_t bytes(int inputs) {
    return inputs * sizeof(int16_t) + static_cast<size_t>(inputs) / kGroup * sizeof(float);
  }
  static void prepare(const float* x, int inputs, uint8_t* prepared) {
    auto* words = reinterpret_cast<int16_t*>(prepared);
    auto* steps = reinterpret_cast<float*>(prepared + inputs * sizeof(int16_t));
    for (int i = 0; i < inputs; i += kGroup) {
      steps[i / kGroup] = round_group<V>(x + i, kFullWord, words + i);
    }
  }

  static void multiply(const ExpertTask& task) {
    const int blocks = task.inputs / kGroup;
    const Scratch s(task.scratch, task.inputs);
    for (int g = task.begin / kGroup; g < task.end / kGroup; ++g) {
      fill(task, g, s);
      for (int first = 0; first < task.count; first += Tile::kFolded) {
        const int folded = task.count - first < Tile::kFolded ? task.count - first : Tile::kFolded;
        for (int i = 0; i < folded; ++i) {
          fold(task.prepared + task.rows[first + i] * task.prepared_stride, task.inputs, i, s);
        }
        for (int part = 0; part < kParts; ++part) {
          const TilePanel panel(s.panels + part * TilePanel::bytes(task.inputs), task.inputs);
          for (int t = 0; t < folded; t += Tile::kTokens) {
            const int tokens = folded - t < Tile::kTokens ? folded - t : Tile::kTokens;
            TileToken<Value> x[Tile::kTokens];
            for (int i = 0; i < tokens; ++i) {
              x[i] = {s.x + static_cast<size_t>(t + i) * task.inputs, s.steps + (t + i) * blocks,
                      s.initial + (t + i) * blocks};
            }
            float sums[Tile::kTokens][Tile::kOutputs];
            multiply_tile<Tile, false>(tokens, x, panel, blocks, sums);
            for (int i = 0; i < tokens; ++i) {
              Tile::store_outputs(sums[i], task.y + (first + t + i) * task.y_stride + g * kGroup +
                                               part * Tile::kOutputs);
            }
          }
        }
      }
    }
  }

 private:
  static void fill(const ExpertTask& task, int g, const Scratch& s) {
    const size_t row_groups = task.outputs / kGroup;
    for (int block = 0; block < task.inputs / kGroup; ++block) {
      const size_t at = block * kGroup * row_groups + g;
      float scales[kGroup];
      for (int r = 0; r < kGroup; ++r) {
        scales[r] = V::scale_of(task.scales + (at + r * row_groups) * 2);
      }
      s.largest[block] = largest_of_group<V>(scales);
      V::round_group(scales, inverse_step<V>(s.largest[block], kFullWord),
                     s.ratios + block * kGroup);
      for (int part = 0; part < kParts; ++part) {
        const TilePanel panel(s.panels + part * TilePanel::bytes(task.inputs), task.inputs);
        Tile::fill_expert(task.codes + at * (kGroup / 2), row_groups * (kGroup / 2), part,
                          panel.codes + static_cast<size_t>(block) * kGroup * Tile::kOutputs);
      }
    }
  }

  static void fold(const uint8_t* prepared, int inputs, int token, const Scratch& s) {
    const int blocks = inputs / kGroup;
    Tile::fold(reinterpret_cast<const int16_t*>(prepared),
               reinterpret_cast<const float*>(prepared + inputs * sizeof(int16_t)), s.ratios,
               s.largest, blocks, s.x + static_cast<size_t>(token) * inputs,
               s.steps + token * blocks, s.initial + token * blocks);
  }
};

}  // namespace mobilemoe
