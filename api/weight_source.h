#ifndef SLUICE_API_WEIGHT_SOURCE_H_
#define SLUICE_API_WEIGHT_SOURCE_H_
// Where a learned router finds its trained weights. The GGUF reader is one; a host may bring its
// own.
#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual absl::StatusOr<int64_t> Int(const std::string& key) const = 0;
  // All elements as float; the tensor must have exactly this shape (fastest dimension first).
  virtual absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                                     absl::Span<const uint64_t> shape) const = 0;
};

// Opens the file that a policy's text names.
using WeightOpener =
    std::function<absl::StatusOr<std::unique_ptr<const WeightSource>>(const std::string& path)>;

// What a learned method reads in Create, with the shapes it would have for a given problem: tests
// and converters make a file from it, and what is not declared is not there.
struct WeightKeys {
  struct Int {
    std::string key;
    int64_t value = 0;
  };
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;  // fastest dimension first
  };
  std::vector<Int> ints;
  std::vector<Tensor> tensors;

  // `name`.weight [in, out] and `name`.bias [out].
  void AddLinear(const std::string& name, int64_t in, int64_t out) {
    tensors.push_back({name + ".weight", {in, out}});
    tensors.push_back({name + ".bias", {out}});
  }
};

// Methods are made from their config alone, learned ones from config and weights.
template <class R>
concept LearnedModel = requires(const typename R::Config& c, const WeightSource& w) {
  { R::Create(c, w) } -> std::same_as<absl::StatusOr<R>>;
};
template <class R>
concept MadeFromConfig = requires(const typename R::Config& c) {
  { R::Create(c) } -> std::same_as<absl::StatusOr<R>>;
};

// A method of its config and, where it is learned, of weights; null: none were given. A learned
// method that also has Create(config) can do without in some configs, and says itself in which.
template <class R>
absl::StatusOr<R> MakeMethod(const typename R::Config& config, const WeightSource* weights) {
  if constexpr (LearnedModel<R>) {
    if (weights != nullptr) return R::Create(config, *weights);
  }
  if constexpr (MadeFromConfig<R>) {
    return R::Create(config);
  } else {
    return absl::FailedPreconditionError("needs trained weights and got none: give weights=FILE");
  }
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_WEIGHT_SOURCE_H_
