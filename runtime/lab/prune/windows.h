#ifndef SLUICE_RUNTIME_LAB_PRUNE_WINDOWS_H_
#define SLUICE_RUNTIME_LAB_PRUNE_WINDOWS_H_
// A text in windows, each a sequence of its own, as its residual streams go through a model.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// InvalidArgument, with the first token that the model has not.
inline absl::Status CheckVocabulary(const host::Model& model, const std::vector<int32_t>& tokens) {
  for (int32_t t : tokens) {
    if (t < 0 || t >= model.shape.vocab)
      return absl::InvalidArgumentError(
          absl::StrCat("token ", t, " is outside [0, ", model.shape.vocab, ")"));
  }
  return absl::OkStatus();
}

class Windows {
 public:
  // The embedded tokens; the last window may be shorter. Tokens are in the vocabulary.
  Windows(const host::Model& model, const std::vector<int32_t>& tokens, int64_t window)
      : width_(model.shape.width), tokens_(std::ssize(tokens)), window_(window) {
    for (int32_t t : tokens) {
      const auto row = model.embed.begin() + t * width_;
      states_.insert(states_.end(), row, row + width_);
    }
  }
  int64_t count() const { return (tokens_ + window_ - 1) / window_; }
  int64_t length(int64_t w) const { return std::min(window_, tokens_ - w * window_); }
  int64_t floats(int64_t w) const { return length(w) * width_; }
  // [length(w), width].
  float* states(int64_t w) { return states_.data() + w * window_ * width_; }

 private:
  int64_t width_, tokens_, window_;
  std::vector<float> states_;
};
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_WINDOWS_H_
