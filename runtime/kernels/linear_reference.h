#ifndef SLUICE_RUNTIME_KERNELS_LINEAR_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_LINEAR_REFERENCE_H_
#include <string>
#include <vector>

#include "sluice/api/weight_source.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
// y = W x + b in double precision, W and b read as `name`.weight and `name`.bias.
inline std::vector<double> Affine(const WeightSource& w, const std::string& name,
                                  const std::vector<double>& x, int64_t out) {
  const uint64_t shape[] = {x.size(), static_cast<uint64_t>(out)};
  const std::vector<float> weight = *w.ReadF32(name + ".weight", shape);
  const std::vector<float> bias = *w.ReadF32(name + ".bias", absl::MakeConstSpan(shape).subspan(1));
  std::vector<double> y(out);
  for (int64_t o = 0; o < out; ++o) {
    y[o] = static_cast<double>(bias[o]);
    for (int64_t i = 0; i < std::ssize(x); ++i)
      y[o] += static_cast<double>(weight[o * x.size() + i]) * x[i];
  }
  return y;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_KERNELS_LINEAR_REFERENCE_H_
