#include "sluice/runtime/lab/score.h"

#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/host/facts.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/facts_file.h"
#include "sluice/runtime/lab/progress.h"
#include "sluice/runtime/report/report.h"
#include "sluice/runtime/text/token_file.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
absl::Status CheckRepeats(const char* what, int64_t n) {
  constexpr int64_t kMost = 1000000;
  if (n >= 1 && n <= kMost) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(n, " ", what, "; allowed: 1 to ", kMost));
}
}  // namespace

absl::Status CheckLength(const char* what, int64_t tokens, int64_t least,
                         const host::Model& model) {
  if (tokens >= least && tokens <= model.shape.context) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(what, " of ", tokens, " tokens; allowed: ", least,
                                            " to the model's context of ", model.shape.context));
}
absl::StatusOr<host::FactPrompt> PlantFacts(const host::Model& model,
                                            const std::vector<int32_t>& text, int64_t length,
                                            int64_t facts, uint64_t seed,
                                            const host::FactWording& wording) {
  if (facts < 1 || facts > kMostFacts)
    return absl::OutOfRangeError(absl::StrCat(facts, " facts a prompt; allowed: 1 to 16"));
  host::FactPrompt p = host::PlantFacts(model.tokenizer, text, length, facts, seed, wording);
  const auto planted = static_cast<int64_t>(p.tokens.size());
  if (planted > length)
    return absl::OutOfRangeError(
        absl::StrCat("a prompt of ", length, " tokens has no room for ", facts,
                     " facts and their questions, which are ", planted,
                     " tokens by themselves; allowed: a longer prompt or fewer facts"));
  return p;
}

absl::Status RunPerplexity(const host::Model& model, host::EngineOptions engine,
                           const PerplexityOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckLength("a window", o.count, 2, model));
  SLUICE_RETURN_IF_ERROR(CheckRepeats("windows", o.windows));
  // All at once: a file that is too short is told before the first window runs and not after it.
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> all,
                          ReadTokens(o.tokens, o.skip, o.windows * o.count));
  if (!o.nll.empty()) SLUICE_RETURN_IF_ERROR(CheckWritable(o.nll));
  engine.max_tokens = o.count;
  SLUICE_ASSIGN_OR_RETURN(const auto e, host::CreateWithPolicy(model, engine, engine.router));
  if (e->prunes())
    return absl::InvalidArgumentError(
        absl::StrCat(engine.router,
                     " chooses among all tokens of a text before it reads them: its perplexity "
                     "would know what comes. `sluice facts` and `sluice evaluate ftp` ask after "
                     "the prompt"));
  double sum = 0;
  int64_t executed = 0, approximated = 0;
  std::vector<float> nll;
  for (int64_t w = 0; w < o.windows; ++w) {
    const std::vector<int32_t> tokens(all.begin() + w * o.count, all.begin() + (w + 1) * o.count);
    const auto progress = Progress(absl::StrCat("window ", w + 1, "/", o.windows), o.count);
    SLUICE_ASSIGN_OR_RETURN(const double p, host::Perplexity(*e, tokens, &nll, progress));
    sum += std::log(p);
    for (int64_t u = 0; u < 2 * model.shape.layers; ++u) {
      executed += e->token_counters(u / 2, u % 2).executed;
      approximated += e->token_counters(u / 2, u % 2).approximated;
    }
  }
  if (approximated > 0)
    std::printf("approximated %.4f of the residual units\n",
                static_cast<double>(approximated) / static_cast<double>(executed + approximated));
  std::printf(
      "perplexity %.4f over %lld windows of %lld tokens; density %.4f, %.2f s in the last window "
      "(attention %.2f, planning %.2f)\n",
      std::exp(sum / static_cast<double>(o.windows)), static_cast<long long>(o.windows),
      static_cast<long long>(o.count), e->counters().density(), e->timing().total_s,
      e->timing().attend_s, e->timing().plan_s);
  if (o.nll.empty()) return absl::OkStatus();
  return WriteWholeFile(o.nll,
                        {reinterpret_cast<const char*>(nll.data()), nll.size() * sizeof(float)});
}

absl::Status RunFacts(const host::Model& model, host::EngineOptions engine, const FactsOptions& o) {
  SLUICE_RETURN_IF_ERROR(CheckLength("a prompt", o.length, 2, model));
  SLUICE_RETURN_IF_ERROR(CheckRepeats("prompts", o.prompts));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> all,
                          ReadTokens(o.tokens, 0, o.prompts * o.length));
  engine.max_tokens = o.length;
  SLUICE_ASSIGN_OR_RETURN(const auto e, host::CreateWithPolicy(model, engine, engine.router));
  double right = 0;
  double asked = 0;
  double density = 0;
  for (int64_t r = 0; r < o.prompts; ++r) {
    const std::vector<int32_t> tokens(all.begin() + r * o.length, all.begin() + (r + 1) * o.length);
    SLUICE_ASSIGN_OR_RETURN(
        const host::FactPrompt p,
        PlantFacts(model, tokens, o.length, o.facts, static_cast<uint64_t>(r) + 1, o.wording));
    const auto progress = Progress(absl::StrCat("prompt ", r + 1, "/", o.prompts), o.length);
    SLUICE_ASSIGN_OR_RETURN(const host::Score score,
                            host::ScoreMarked(*e, p.tokens, p.answer, p.text, progress));
    right += static_cast<double>(score.right);
    asked += static_cast<double>(score.asked);
    density += e->counters().density() / static_cast<double>(o.prompts);
  }
  std::printf(
      "fact accuracy %.4f (%.0f of %.0f answer tokens) in %lld prompts of %lld tokens; density "
      "%.4f\n",
      right / asked, right, asked, static_cast<long long>(o.prompts),
      static_cast<long long>(o.length), density);
  return absl::OkStatus();
}
}  // namespace lab
SLUICE_END_NAMESPACE
