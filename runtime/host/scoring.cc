#include "sluice/runtime/host/scoring.h"

#include <algorithm>
#include <cmath>

#include "sluice/runtime/host/facts.h"
#include "sluice/runtime/kernels/softmax/softmax.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace {
int64_t ArgMax(const float* x, int64_t n) { return std::max_element(x, x + n) - x; }
}  // namespace

absl::StatusOr<double> Perplexity(Engine& engine, const std::vector<int32_t>& tokens,
                                  std::vector<float>* nll,
                                  const std::function<void(int64_t)>& progress) {
  if (tokens.size() < 2) return absl::InvalidArgumentError("perplexity needs at least two tokens");
  engine.Reset();
  double sum = 0;
  if (nll != nullptr) nll->assign(tokens.size() - 1, 0);
  const size_t vocab = static_cast<size_t>(engine.model().shape.vocab);
  SLUICE_RETURN_IF_ERROR(engine.Feed(
      tokens, 0,
      [&](int64_t p, const float* logits) {
        if (p + 1 >= static_cast<int64_t>(tokens.size())) return;
        const float x =
            kernels::LogSumExp(logits, vocab) - logits[tokens[static_cast<size_t>(p) + 1]];
        sum += x;
        if (nll != nullptr) (*nll)[p] = x;
      },
      progress));
  return std::exp(sum / static_cast<double>(tokens.size() - 1));
}

absl::StatusOr<Score> ScoreMarked(Engine& engine, const std::vector<int32_t>& tokens,
                                  const std::vector<uint8_t>& answer,
                                  const std::vector<uint8_t>& text,
                                  const std::function<void(int64_t)>& progress) {
  engine.Reset();
  Score score;
  const size_t vocab = static_cast<size_t>(engine.model().shape.vocab);
  const auto see = [&](int64_t p, const float* logits) {
    const size_t next = static_cast<size_t>(p) + 1;
    if (next >= tokens.size()) return;
    if (text[next] != 0) {
      score.nll += kernels::LogSumExp(logits, vocab) - logits[tokens[next]];
      ++score.counted;
    }
    if (answer[next] != 0) {
      ++score.asked;
      score.right += ArgMax(logits, static_cast<int64_t>(vocab)) == tokens[next];
    }
  };
  // No decision may be taken from an answer.
  const int64_t first = engine.decides_by_prompt() ? BeforeAnswers(answer) : 0;
  if (first > 0)
    SLUICE_RETURN_IF_ERROR(engine.Feed({tokens.begin(), tokens.begin() + first},
                                       engine.prunes() ? first - 1 : 0, see, progress));
  SLUICE_RETURN_IF_ERROR(engine.Feed({tokens.begin() + first, tokens.end()}, first, see,
                                     first > 0 ? nullptr : progress));
  score.perplexity =
      score.counted > 0 ? std::exp(score.nll / static_cast<double>(score.counted)) : 0;
  score.accuracy =
      score.asked > 0 ? static_cast<double>(score.right) / static_cast<double>(score.asked) : 0;
  return score;
}
}  // namespace host
SLUICE_END_NAMESPACE
