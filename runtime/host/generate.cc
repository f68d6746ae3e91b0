#include "sluice/runtime/host/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace {
// The next token, from the logits [vocab] that follow the last. `step`: of the generation.
int32_t Sample(const std::vector<float>& logits, const Sampling& sampling, uint64_t step) {
  if (sampling.temperature == 0)
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const int64_t vocab = static_cast<int64_t>(logits.size());
  const int64_t k = sampling.top_k > 0 ? std::min(sampling.top_k, vocab) : vocab;
  std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  std::vector<double> p(static_cast<size_t>(k));
  double total = 0;
  for (int64_t j = 0; j < k; ++j) {
    p[j] = std::exp((logits[order[j]] - logits[order[0]]) / sampling.temperature);
    total += p[j];
  }
  double u = RandomUniform({sampling.seed, step, 0, 0, 0}) * total;
  int64_t j = 0;
  while (j + 1 < k && u >= p[j]) {
    u -= p[j];
    ++j;
  }
  return order[j];
}
}  // namespace

absl::StatusOr<std::vector<int32_t>> Generate(Engine& engine, const std::vector<int32_t>& prompt,
                                              int64_t count, const Sampling& sampling,
                                              const std::function<bool(int32_t)>& on_token) {
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt is empty");
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature) || sampling.top_k < 0)
    return absl::InvalidArgumentError(absl::StrCat("temperature ", sampling.temperature,
                                                   " and top-k ", sampling.top_k,
                                                   "; allowed: finite numbers from 0"));
  const int64_t vocab = engine.model().shape.vocab;
  std::vector<float> last(vocab);
  const auto keep = [&](int64_t, const float* logits) {
    std::copy(logits, logits + vocab, last.begin());
  };
  SLUICE_RETURN_IF_ERROR(
      engine.Feed(prompt, engine.length() + static_cast<int64_t>(prompt.size()) - 1, keep));
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t next = Sample(last, sampling, static_cast<uint64_t>(i));
    if (next == engine.model().tokenizer.eos()) break;
    out.push_back(next);
    if ((on_token && !on_token(next)) || i + 1 == count) break;
    SLUICE_RETURN_IF_ERROR(engine.Feed({next}, engine.length(), keep));
  }
  return out;
}
}  // namespace host
SLUICE_END_NAMESPACE
