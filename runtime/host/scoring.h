#ifndef SLUICE_RUNTIME_HOST_SCORING_H_
#define SLUICE_RUNTIME_HOST_SCORING_H_
// How well an engine predicts a text.
#include <cstdint>
#include <functional>
#include <vector>

#include "sluice/runtime/host/engine.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// exp of the mean negative log-likelihood of tokens 1.. given those before. Fills `nll` when not
// null.
absl::StatusOr<double> Perplexity(Engine& engine, const std::vector<int32_t>& tokens,
                                  std::vector<float>* nll = nullptr,
                                  const std::function<void(int64_t)>& progress = {});
// Share of the marked tokens that the model ranks first given everything before them. `text` limits
// perplexity. An engine that decides by its prompt gets what stands before the first answer as its
// prompt, and the rest after it; one that prunes then leaves the perplexity 0, unknown.
struct Score {
  double perplexity = 0, accuracy = 0, nll = 0;  // nll: summed over `counted` tokens
  int64_t asked = 0, right = 0, counted = 0;
};
absl::StatusOr<Score> ScoreMarked(Engine& engine, const std::vector<int32_t>& tokens,
                                  const std::vector<uint8_t>& answer,
                                  const std::vector<uint8_t>& text,
                                  const std::function<void(int64_t)>& progress = {});
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_SCORING_H_
