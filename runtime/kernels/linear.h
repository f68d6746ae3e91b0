#ifndef SLUICE_RUNTIME_KERNELS_LINEAR_H_
#define SLUICE_RUNTIME_KERNELS_LINEAR_H_
// Small dense layers of learned routers and forecasters.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "sluice/api/check.h"
#include "sluice/api/weight_source.h"
#include "sluice/api/workspace.h"
#include "sluice/runtime/kernels/dot/dot.h"
#include "sluice/runtime/kernels/gemm/gemm.h"

SLUICE_BEGIN_NAMESPACE
// y = W x + b, W [out, in] row-major.
struct Linear {
  int64_t in = 0, out = 0;
  std::vector<float> weight, bias;

  // Reads `name`.weight and `name`.bias.
  static absl::StatusOr<Linear> Read(const WeightSource& source, const std::string& name,
                                     int64_t in, int64_t out) {
    Linear l{in, out, {}, {}};
    const uint64_t shape[] = {static_cast<uint64_t>(in), static_cast<uint64_t>(out)};
    SLUICE_ASSIGN_OR_RETURN(l.weight, source.ReadF32(name + ".weight", shape));
    SLUICE_ASSIGN_OR_RETURN(l.bias,
                            source.ReadF32(name + ".bias", absl::MakeConstSpan(shape).subspan(1)));
    return l;
  }
  // Reads the tensor `name` alone; the bias is 0.
  static absl::StatusOr<Linear> ReadMatrix(const WeightSource& source, const std::string& name,
                                           int64_t in, int64_t out) {
    Linear l{in, out, {}, std::vector<float>(static_cast<size_t>(out))};
    const uint64_t shape[] = {static_cast<uint64_t>(in), static_cast<uint64_t>(out)};
    SLUICE_ASSIGN_OR_RETURN(l.weight, source.ReadF32(name, shape));
    return l;
  }
  // One row. Its bits do not depend on other rows of a batch. O(in out).
  void Apply(const float* x, float* y) const {
    for (int64_t o = 0; o < out; ++o)
      y[o] = kernels::Dot(x, weight.data() + o * in, DType::kF32, static_cast<int64_t>(in)) +
             bias[static_cast<int64_t>(o)];
  }
  // x [n, in] -> y [n, out]; scratch: kernels::GemmScratchFloats(in). Every output is one dot
  // product: its bits do not depend on the other rows.
  void ApplyRows(const float* x, int64_t n, float* y, float* scratch) const {
    const int64_t i = static_cast<int64_t>(in), o = static_cast<int64_t>(out);
    kernels::GemmNT(x, i, weight.data(), i, static_cast<int64_t>(n), o, i, y, o, scratch);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < o; ++c) y[static_cast<int64_t>(r) * o + c] += bias[c];
    }
  }
};
// Two layers with ReLU between: the router of several token methods.
struct ReluPair {
  Linear first, second;
  struct Scratch {
    int64_t hidden = 0, gemm = 0;
  };
  Scratch Reserve(int64_t rows, WorkspaceLayout& w) const {
    Scratch s;
    s.hidden = w.Add<float>(rows * first.out);
    s.gemm = w.Add<float>(static_cast<int64_t>(
        kernels::GemmScratchFloats(static_cast<int64_t>(std::max(first.in, first.out)))));
    return s;
  }
  // x [n, first.in] -> y [n, second.out], n at most the rows reserved. O(n in hidden).
  void ApplyRows(const float* x, int64_t n, const Workspace& workspace, const Scratch& s,
                 float* y) const {
    float* hidden = workspace.At<float>(s.hidden);
    float* gemm = workspace.At<float>(s.gemm);
    first.ApplyRows(x, n, hidden, gemm);
    for (int64_t i = 0; i < n * first.out; ++i) hidden[i] = hidden[i] < 0 ? 0.0f : hidden[i];
    second.ApplyRows(hidden, n, y, gemm);
  }
};
inline float SiLU(float x) { return x / (1.0f + std::exp(-x)); }
inline void SiLU(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = SiLU(x[i]);
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_KERNELS_LINEAR_H_
