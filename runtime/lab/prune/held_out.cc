#include "sluice/runtime/lab/prune/held_out.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/host/scoring.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
std::vector<TokenRange> Without(TokenRange all, TokenRange gone) {
  std::vector<TokenRange> left;
  const TokenRange before = {all.begin, std::min(all.end, gone.begin)};
  const TokenRange after = {std::max(all.begin, gone.end), all.end};
  if (gone.size() <= 0) return {all};
  if (before.size() > 0) left.push_back(before);
  if (after.size() > 0) left.push_back(after);
  return left;
}

absl::StatusOr<std::vector<int64_t>> SpreadWindows(absl::Span<const TokenRange> ranges,
                                                   int64_t window, int64_t count) {
  int64_t room = 0;
  int64_t longest = 0;
  for (const TokenRange& r : ranges) {
    room += std::max<int64_t>(r.size(), 0) / window;
    longest = std::max(longest, r.size());
  }
  if (room == 0)
    return absl::OutOfRangeError(absl::StrCat("a text of ", longest,
                                              " tokens is shorter than a window of ", window,
                                              "; allowed: a longer text or a shorter window"));
  if (count < 1 || count > room)
    return absl::OutOfRangeError(absl::StrCat(count, " windows of ", window,
                                              " tokens; allowed: 1 to ", room,
                                              ", as many as the text has room for"));
  std::vector<int64_t> begins;
  int64_t passed = 0;  // windows of the ranges before this one
  auto range = ranges.begin();
  for (int64_t i = 0; i < count; ++i) {
    const double middle = (static_cast<double>(i) + 0.5) / static_cast<double>(count);
    const auto at = static_cast<int64_t>(middle * static_cast<double>(room));
    while (at - passed >= range->size() / window) {
      passed += range->size() / window;
      ++range;
    }
    begins.push_back(range->begin + (at - passed) * window);
  }
  return begins;
}

absl::StatusOr<std::vector<double>> LogPerplexities(const host::Model& model,
                                                    const std::vector<int32_t>& tokens,
                                                    absl::Span<const int64_t> begins,
                                                    int64_t window, host::EngineOptions options,
                                                    const std::function<void(int64_t)>& progress) {
  options.max_tokens = window;
  SLUICE_ASSIGN_OR_RETURN(const auto engine, host::Engine::Create(model, options));
  std::vector<double> logs;
  for (int64_t begin : begins) {
    const auto first = tokens.begin() + begin;
    SLUICE_ASSIGN_OR_RETURN(const double p, host::Perplexity(*engine, {first, first + window}));
    logs.push_back(std::log(p));
    if (progress) progress(std::ssize(logs));
  }
  return logs;
}
}  // namespace lab
SLUICE_END_NAMESPACE
