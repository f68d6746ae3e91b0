#ifndef SLUICE_RUNTIME_LAB_SCORE_H_
#define SLUICE_RUNTIME_LAB_SCORE_H_
// Quality of a model under a router: perplexity of held-out text, and facts planted in it. Each
// prints one line.
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/facts.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// A prompt of `tokens` tokens, at least `least` and at most what the model was trained for.
absl::Status CheckLength(const char* what, int64_t tokens, int64_t least, const host::Model& model);
// Facts between `length` tokens of text; an error where they leave no room for text.
absl::StatusOr<host::FactPrompt> PlantFacts(const host::Model& model,
                                            const std::vector<int32_t>& text, int64_t length,
                                            int64_t facts, uint64_t seed,
                                            const host::FactWording& wording);

struct PerplexityOptions {
  std::string tokens;    // file of ids (ReadTokens)
  int64_t skip = 0;      // tokens
  int64_t count = 2048;  // tokens a window, from 2 to the model's context
  int64_t windows = 1;   // each with an empty context
  std::string nll;       // file for the last window's float32 values; "": none
};
absl::Status RunPerplexity(const host::Model& model, host::EngineOptions engine,
                           const PerplexityOptions& options);

struct FactsOptions {
  std::string tokens;
  int64_t length = 4096;  // tokens a prompt
  int64_t facts = 4;      // a prompt, 1 to 16
  int64_t prompts = 4;
  host::FactWording wording;
};
absl::Status RunFacts(const host::Model& model, host::EngineOptions engine,
                      const FactsOptions& options);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_SCORE_H_
