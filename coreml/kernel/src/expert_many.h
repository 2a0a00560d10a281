// Many tokens times a routed expert, with rounded activations. A template of the loops
// (vectors_avx2.h): what is particular to a precision and a CPU is in `Tile`, as for linear_many.h.
//
// A group of 32 outputs at a time: its codes are unpacked into panels, its scales become ratios to
// the largest of each block of 32 inputs. A few tokens at a time are multiplied with the ratios,
// rounded again ("folded"), and multiplied with the panels.
//
// Tile, besides what linear_many.h names:
//   kFolded                    tokens that are folded before they are multiplied
//   kFoldLanes, kFoldTokens    blocks of 32 inputs that are folded together, a multiple of kLanes; and
//                              tokens
//   ratios(...), fold<n>(...)  of kFoldLanes blocks and n tokens, see fold_avx2.h
//   fill_expert(codes, row_bytes, part, to)   unpacks 32 rows of outputs kOutputs * part on
//   store_outputs(sums, y)     kOutputs sums, back into the order of the columns
#pragma once

#include "kernels.h"
#include "linear_many.h"
#include "prefetch.h"
#include "rounding.h"

namespace mobilemoe {

// Of a prepared token's values.
constexpr float kFullWord = 32767.0f;

template <typename Tile>
class ExpertMany {
  using V = typename Tile::V;
  using Value = typename Tile::Value;
  using TilePanel = Panel<typename Tile::Code, Tile::kOutputs>;
  static constexpr int kParts = kGroup / Tile::kOutputs;
  static constexpr int kFoldLanes = Tile::kFoldLanes;

  static int padded(int inputs) {
    return (inputs / kGroup + kFoldLanes - 1) / kFoldLanes * kFoldLanes;
  }

  // Scratch of a group of 32 outputs.
  struct Scratch {
    static size_t bytes(int inputs) {
      const size_t blocks = padded(inputs);
      return kParts * TilePanel::bytes(inputs) + blocks * sizeof(float) +
             Tile::kFolded * blocks * (sizeof(float) + sizeof(int32_t)) +
             blocks * kGroup * (sizeof(int16_t) + Tile::kFolded * sizeof(Value));
    }
    Scratch(uint8_t* memory, int inputs) : blocks(padded(inputs)), panels(memory) {
      largest = reinterpret_cast<float*>(memory + kParts * TilePanel::bytes(inputs));
      steps = largest + blocks;
      initial = reinterpret_cast<int32_t*>(steps + Tile::kFolded * blocks);
      ratios = reinterpret_cast<int16_t*>(initial + Tile::kFolded * blocks);
      x = reinterpret_cast<Value*>(ratios + blocks * kGroup);
    }

    TileToken token(int index) const {
      return {reinterpret_cast<const uint8_t*>(x + index * blocks * kGroup),
              steps + index * blocks, initial + index * blocks};
    }

    const size_t blocks;  // padded
    uint8_t* panels;
    float* largest;    // [blocks]: the largest scale
    float* steps;      // [kFolded][blocks]
    int32_t* initial;  // [kFolded][blocks]
    int16_t* ratios;   // [blocks / kFoldLanes][32][kFoldLanes]: scale over the largest of its block
    Value* x;          // [kFolded] as TileToken has them
  };

 public:
  static size_t scratch_bytes(int inputs) { return Scratch::bytes(inputs); }

  // Of a prepared token: values of 16 bits [padded blocks / kFoldLanes][32][kFoldLanes], steps.
  static size_t bytes(int inputs) {
    return static_cast<size_t>(padded(inputs)) * (kGroup * sizeof(int16_t) + sizeof(float));
  }
  static void prepare(const float* x, int inputs, uint8_t* prepared) {
    std::memset(prepared, 0, bytes(inputs));
    auto* words = reinterpret_cast<int16_t*>(prepared);
    auto* steps = reinterpret_cast<float*>(words + padded(inputs) * kGroup);
    for (int block = 0; block < inputs / kGroup; ++block) {
      int16_t q[kGroup];
      steps[block] = round_group<V>(x + block * kGroup, kFullWord, q);
      int16_t* to = words + block / kFoldLanes * (kGroup * kFoldLanes) + block % kFoldLanes;
      for (int i = 0; i < kGroup; ++i) to[i * kFoldLanes] = q[i];
    }
  }

  static void multiply(const ExpertTask& task) {
    const int blocks = task.inputs / kGroup;
    const Scratch s(task.scratch, task.inputs);
    for (int g = task.begin / kGroup; g < task.end / kGroup; ++g) {
      fill(task, g, s);
      for (int first = 0; first < task.count; first += Tile::kFolded) {
        const int folded = task.count - first < Tile::kFolded ? task.count - first : Tile::kFolded;
        for (int i = 0; i < folded; i += Tile::kFoldTokens) {
          fold(task, first + i, folded - i, i, s);
        }
        for (int part = 0; part < kParts; ++part) {
          const TilePanel panel(s.panels + part * TilePanel::bytes(task.inputs), task.inputs);
          for (int t = 0; t < folded; t += Tile::kTokens) {
            const int tokens = folded - t < Tile::kTokens ? folded - t : Tile::kTokens;
            TileToken x[Tile::kTokens];
            for (int i = 0; i < tokens; ++i) x[i] = s.token(t + i);
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
    const size_t row_groups = task.outputs / kGroup, row_bytes = row_groups * (kGroup / 2);
    const size_t offset = static_cast<size_t>(g) * (kGroup / 2);  // within a row
    // Behind a row's last line, the first ones of the next expert.
    const bool last = offset + kLine >= row_bytes && task.next_codes != nullptr;
    const uint8_t* ahead = last ? task.next_codes : task.codes + offset + kLine;
    for (int block = 0; block < task.inputs / kGroup; ++block) {
      const size_t at = block * kGroup * row_bytes;
      for (int part = 0; part < kParts; ++part) {
        const TilePanel panel(s.panels + part * TilePanel::bytes(task.inputs), task.inputs);
        Tile::fill_expert(task.codes + at + offset, row_bytes, part,
                          panel.codes + static_cast<size_t>(block) * kGroup * Tile::kOutputs);
      }
      // These lines lie a row apart: no hardware finds them.
      if (offset % kLine == 0) {
        for (int r = 0; r < kGroup; ++r) prefetch(ahead + at + r * row_bytes);
      }
    }
    const uint8_t* scales = task.scales + static_cast<size_t>(g) * 2;
    const int blocks = task.inputs / kGroup;
    for (int block = 0; block < blocks; block += kFoldLanes) {
      Tile::ratios(scales + block * kGroup * row_groups * 2, row_groups * 2, blocks - block,
                   s.largest + block, s.ratios + block * kGroup);
    }
  }

  // `count` tokens, which become those of `s` from `to` on; at the end fewer than kFoldTokens.
  template <int kCount = Tile::kFoldTokens>
  static void fold(const ExpertTask& task, int first, int count, int to, const Scratch& s) {
    if constexpr (kCount > 1) {
      if (count < kCount) return fold<kCount - 1>(task, first, count, to, s);
    }
    for (size_t block = 0; block < s.blocks; block += kFoldLanes) {
      FoldedToken<Value> tokens[kCount];
      for (int i = 0; i < kCount; ++i) {
        const auto* words = reinterpret_cast<const int16_t*>(
            task.prepared + task.rows[first + i] * task.prepared_stride);
        const auto* steps = reinterpret_cast<const float*>(words + s.blocks * kGroup);
        const size_t at = (to + i) * s.blocks + block;
        tokens[i] = {words + block * kGroup, steps + block, s.x + at * kGroup, s.steps + at,
                     s.initial + at};
      }
      Tile::template fold<kCount>(tokens, s.ratios + block * kGroup, s.largest + block);
    }
  }
};

}  // namespace mobilemoe
