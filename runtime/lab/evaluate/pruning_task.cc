#include "sluice/runtime/lab/evaluate/pruning_task.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "sluice/policies/search/genetic.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/host/facts.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/runtime/lab/evaluate/statistics.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
std::vector<PruningPrompt> PruningPrompts(const host::Model& model,
                                          const std::vector<int32_t>& held, int64_t begin,
                                          int64_t end, int64_t length, int64_t count,
                                          uint64_t seed) {
  constexpr int64_t kFollow = 128;
  std::vector<PruningPrompt> out;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t room = static_cast<uint64_t>(end - begin - length - kFollow);
    const auto at =
        held.begin() + begin +
        static_cast<int64_t>(RandomBits({seed, 2, 0, 0, static_cast<uint64_t>(i)}) % room);
    const host::FactPrompt f = host::PlantFacts(model.tokenizer, {at, at + length}, length, 4,
                                                seed * 1000 + static_cast<uint64_t>(i));
    const int64_t first = host::BeforeAnswers(f.answer);
    out.push_back({{f.tokens.begin(), f.tokens.begin() + first},
                   {f.tokens.begin() + first, f.tokens.end()},
                   {f.answer.begin() + first, f.answer.end()},
                   true});
    out.push_back({{at, at + length},
                   {at + length, at + length + kFollow},
                   std::vector<uint8_t>(kFollow, 1),
                   false});
  }
  return out;
}
absl::StatusOr<PruningScore> ScorePruning(host::Engine& e,
                                          const std::vector<PruningPrompt>& prompts, bool single) {
  const size_t vocab = static_cast<size_t>(e.model().shape.vocab);
  double asked[2] = {}, right[2] = {}, nll[2] = {};
  PruningScore r;
  for (const PruningPrompt& p : prompts) {
    e.Reset();
    const int64_t n = static_cast<int64_t>(p.prompt.size());
    const auto see = [&](int64_t position, const float* logits) {
      const size_t at = static_cast<size_t>(position + 1 - n);
      if (at >= p.rest.size() || p.scored[at] == 0) return;
      const int32_t want = p.rest[at];
      ++asked[p.facts];
      right[p.facts] += std::max_element(logits, logits + vocab) - logits == want;
      nll[p.facts] += static_cast<double>(kernels::LogSumExp(logits, vocab) - logits[want]);
    };
    SLUICE_RETURN_IF_ERROR(e.Feed(p.prompt, n - 1, see));
    for (int64_t layer = 0; layer < e.model().shape.layers; ++layer)
      r.sparsity +=
          e.block_counters(layer).sparsity() /
          static_cast<double>(e.model().shape.layers * static_cast<int64_t>(prompts.size()));
    if (!single) SLUICE_RETURN_IF_ERROR(e.Feed(p.rest, n, see));
    for (size_t i = 0; single && i < p.rest.size(); ++i)
      SLUICE_RETURN_IF_ERROR(e.Feed({p.rest[i]}, n, see));
  }
  r.facts = right[1] / std::max(1.0, asked[1]);
  r.next = right[0] / std::max(1.0, asked[0]);
  r.nll = (nll[0] / std::max(1.0, asked[0]) + nll[1] / std::max(1.0, asked[1])) / 2;
  return r;
}
absl::StatusOr<std::vector<double>> SearchSchedule(const host::Model& model,
                                                   const std::vector<int32_t>& held,
                                                   const ScheduleOptions& o) {
  const int64_t half = static_cast<int64_t>(held.size()) / 2;
  if (o.length < 256 || o.length + 256 > half || o.prompts < 1)
    return absl::InvalidArgumentError(
        absl::StrCat(o.prompts, " prompts of ", o.length, " tokens; allowed 256 to ", half - 256));
  // The second half of the held-out text: evaluations use the first.
  const std::vector<PruningPrompt> prompts = PruningPrompts(
      model, held, half, static_cast<int64_t>(held.size()), o.length, o.prompts, o.seed);
  GeneticOptions g;
  g.population = o.population;
  g.generations = o.generations;
  g.seed = o.seed;
  const auto fitness = [&](const std::vector<double>& schedule) -> absl::StatusOr<double> {
    host::EngineOptions eo;
    eo.threads = o.threads;
    eo.max_tokens = o.length + 512;
    eo.pruning.router = o.weights != nullptr ? "token/ftp:topk=1" : "token/ftp_static";
    eo.pruning.weights = o.weights;
    eo.pruning.sparsity = schedule;
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model, eo));
    SLUICE_ASSIGN_OR_RETURN(const PruningScore s, ScorePruning(*e, prompts));
    return -s.nll;
  };
  SLUICE_ASSIGN_OR_RETURN(const GeneticResult r,
                          GeneticSearch(model.shape.layers, o.sparsity, g, fitness, o.start,
                                        [&](int64_t generation, double best) {
                                          Note(absl::StrCat("generation ", generation, "/",
                                                            o.generations, ", loss ", -best));
                                        }));
  ClearNote();
  return r.best;
}
}  // namespace lab
SLUICE_END_NAMESPACE
