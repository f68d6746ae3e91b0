#ifndef SLUICE_RUNTIME_LAB_PRUNE_HELD_OUT_H_
#define SLUICE_RUNTIME_LAB_PRUNE_HELD_OUT_H_
// Windows of a text that a model is measured on: spread over all of it, none where something was
// chosen by what the text says.
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// Tokens [begin, end) of a text.
struct TokenRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};
// What is left of `all` without `gone`: none, one or two ranges, in order.
std::vector<TokenRange> Without(TokenRange all, TokenRange gone);

// Where `count` windows of `window` tokens begin, ascending, none over another: each range is cut
// into windows from its beginning, and of all of them the middles of `count` equal parts are
// taken. OutOfRange where the ranges have no room for one window, or for fewer than `count`.
// O(count + ranges).
absl::StatusOr<std::vector<int64_t>> SpreadWindows(absl::Span<const TokenRange> ranges,
                                                   int64_t window, int64_t count);

// Log perplexity of each window, which is a sequence of its own. Windows lie within the tokens.
// `progress` gets the windows done. O(windows) times the model.
absl::StatusOr<std::vector<double>> LogPerplexities(
    const host::Model& model, const std::vector<int32_t>& tokens, absl::Span<const int64_t> begins,
    int64_t window, host::EngineOptions engine, const std::function<void(int64_t)>& progress = {});
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_HELD_OUT_H_
