#ifndef SLUICE_RUNTIME_LAB_EVALUATE_TRAINED_H_
#define SLUICE_RUNTIME_LAB_EVALUATE_TRAINED_H_
// What an evaluation reads: text that no training saw, and the weights that each training seed
// gave.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
inline absl::StatusOr<std::vector<int32_t>> ReadHeldOut(const EvaluateOptions& o) {
  return ReadTokens(o.tokens.empty() ? o.folder + "/sluice-mini-eval.u16" : o.tokens, 0, -1);
}
inline absl::StatusOr<Gguf> OpenTrained(const EvaluateOptions& o, absl::string_view name,
                                        int seed) {
  return Gguf::Open(absl::StrCat(o.folder, "/", name, "-s", seed, ".gguf"));
}

// Tokens of a window of text, which starts from nothing.
constexpr int64_t kTextWindow = 1024;
// Of a text in such windows, whole ones only.
inline absl::StatusOr<double> WindowPerplexity(host::Engine& engine,
                                               const std::vector<int32_t>& tokens) {
  double nll = 0;
  int64_t windows = 0;
  for (int64_t at = 0; at + kTextWindow <= std::ssize(tokens); at += kTextWindow) {
    engine.Reset();
    SLUICE_ASSIGN_OR_RETURN(
        const double ppl,
        host::Perplexity(engine, {tokens.begin() + at, tokens.begin() + at + kTextWindow}));
    nll += std::log(ppl);
    ++windows;
  }
  return std::exp(nll / static_cast<double>(windows));
}

// Text to fit on, and other text that figures are of, in whole windows.
struct FitText {
  std::vector<int32_t> fit, held;
};
// `fit_windows` from the middle of the held-out text; of its first half o.prompts windows, as far
// as it reaches, and no fewer than `least`.
inline absl::StatusOr<FitText> ReadFitText(const EvaluateOptions& o, int64_t fit_windows,
                                           int64_t least) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> all, ReadHeldOut(o));
  const int64_t half = std::ssize(all) / 2;
  const int64_t held = std::min(half / kTextWindow, o.prompts) * kTextWindow;
  const int64_t fit = fit_windows * kTextWindow;
  if (half < fit || held < least * kTextWindow)
    return absl::InvalidArgumentError(absl::StrCat("held-out text of ", all.size(), " tokens and ",
                                                   o.prompts, " windows; allowed: from ", 2 * fit,
                                                   " tokens and from ", least, " windows"));
  return FitText{{all.begin() + half, all.begin() + half + fit}, {all.begin(), all.begin() + held}};
}

// One engine dense and one routed, fed the same tokens in turn.
struct EnginePair {
  std::unique_ptr<host::Engine> dense, routed;

  static absl::StatusOr<EnginePair> Create(const host::Model& model,
                                           const host::EngineOptions& routed) {
    host::EngineOptions plain;
    plain.threads = routed.threads;
    plain.max_tokens = routed.max_tokens;
    EnginePair pair;
    SLUICE_ASSIGN_OR_RETURN(pair.dense, host::Engine::Create(model, plain));
    SLUICE_ASSIGN_OR_RETURN(pair.routed, host::Engine::Create(model, routed));
    return pair;
  }
  // Both from nothing, without logits.
  absl::Status Prefill(const std::vector<int32_t>& tokens) {
    for (host::Engine* e : {dense.get(), routed.get()}) {
      e->Reset();
      SLUICE_RETURN_IF_ERROR(e->Feed(tokens, static_cast<int64_t>(tokens.size())));
    }
    return absl::OkStatus();
  }
  // What routing leaves of the attention.
  double PairsKept() const {
    return static_cast<double>(routed->counters().exact_pairs) /
           static_cast<double>(dense->counters().exact_pairs);
  }
};
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_EVALUATE_TRAINED_H_
