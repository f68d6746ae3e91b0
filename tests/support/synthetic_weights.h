#ifndef SLUICE_TESTS_SUPPORT_SYNTHETIC_WEIGHTS_H_
#define SLUICE_TESTS_SUPPORT_SYNTHETIC_WEIGHTS_H_
// Weights that a learned method declares, and nothing else: a method that reads a key or a shape
// that it did not declare fails.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "sluice/api/weight_source.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
class SyntheticWeights final : public WeightSource {
 public:
  explicit SyntheticWeights(WeightKeys keys, uint64_t seed = 7)
      : keys_(std::move(keys)), seed_(seed) {}

  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    for (const WeightKeys::Int& i : keys_.ints) {
      if (i.key == key) return i.value;
    }
    return absl::NotFoundError(absl::StrCat("the method reads '", key, "', undeclared"));
  }

  // Uniform in [-0.5, 0.5) / sqrt(inputs), a function of seed, name and index.
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t> shape) const override {
    for (const WeightKeys::Tensor& t : keys_.tensors) {
      if (t.name != name) continue;
      if (!std::equal(t.shape.begin(), t.shape.end(), shape.begin(), shape.end(),
                      [](int64_t a, uint64_t b) { return static_cast<uint64_t>(a) == b; }))
        return absl::InvalidArgumentError(absl::StrCat(name, ": declared [",
                                                       absl::StrJoin(t.shape, ", "), "], read as [",
                                                       absl::StrJoin(shape, ", "), "]"));
      return Make(name, shape);
    }
    return absl::NotFoundError(absl::StrCat("the method reads tensor '", name, "', undeclared"));
  }

 private:
  std::vector<float> Make(const std::string& name, absl::Span<const uint64_t> shape) const {
    uint64_t n = 1;
    for (uint64_t s : shape) n *= s;
    uint64_t seed = seed_;
    for (char c : name) seed = seed * 131 + static_cast<unsigned char>(c);
    const double scale = shape.size() > 1 ? std::sqrt(static_cast<double>(shape[0])) : 1.0;
    std::vector<float> x(n);
    for (uint64_t i = 0; i < n; ++i)
      x[i] = static_cast<float>((RandomUniform({seed, 0, 0, 0, i}) - 0.5) / scale);
    return x;
  }

  WeightKeys keys_;
  uint64_t seed_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_SYNTHETIC_WEIGHTS_H_
