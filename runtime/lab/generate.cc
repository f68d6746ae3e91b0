#include "sluice/runtime/lab/generate.h"

#include <chrono>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/host/generate.h"
#include "sluice/runtime/host/policy.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
absl::Status RunGenerate(const host::Model& model, host::EngineOptions engine,
                         const GenerateOptions& o) {
  const std::vector<int32_t> prompt = model.tokenizer.Encode(o.prompt);
  const auto given = static_cast<int64_t>(prompt.size());
  if (given < 1) return absl::InvalidArgumentError("the prompt is empty; allowed: a text");
  if (given >= model.shape.context || o.count < 1 || o.count > model.shape.context - given)
    return absl::OutOfRangeError(absl::StrCat(
        "a prompt of ", given, " tokens and ", o.count,
        " more; allowed: one or more, together the model's context of ", model.shape.context));
  engine.max_tokens = given + o.count;
  SLUICE_ASSIGN_OR_RETURN(const auto e, host::CreateWithPolicy(model, engine, engine.router));
  std::printf("%s", o.prompt.c_str());
  using Clock = std::chrono::steady_clock;
  Clock::time_point first;  // of the tokens: what follows is decoding
  Clock::time_point last;
  int64_t steps = -1;
  const auto say = [&](int32_t id) {
    last = Clock::now();
    if (++steps == 0) first = last;
    std::printf("%s", model.tokenizer.Decode({id}).c_str());
    std::fflush(stdout);
    return true;
  };
  const auto made = host::Generate(*e, prompt, o.count, o.sampling, say);
  std::printf("\n");
  const host::SparseWeights::Held& held = e->sparse_weights();
  if (held.matrices > 0)
    std::fprintf(stderr,
                 "%lld of the layers' %lld matrices held as %s: %lld of %lld weights, %.1f MB "
                 "instead of %.1f\n",
                 static_cast<long long>(held.matrices), static_cast<long long>(held.of),
                 engine.sparse_weights.c_str(), static_cast<long long>(held.kept),
                 static_cast<long long>(held.weights), 1e-6 * static_cast<double>(held.bytes),
                 4e-6 * static_cast<double>(held.weights));
  if (steps > 0)
    std::fprintf(stderr, "%.1f tokens a second after the first\n",
                 static_cast<double>(steps) / std::chrono::duration<double>(last - first).count());
  return made.status();
}
}  // namespace lab
SLUICE_END_NAMESPACE
