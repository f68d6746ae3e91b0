#ifndef SLUICE_RUNTIME_LAB_GENERATE_H_
#define SLUICE_RUNTIME_LAB_GENERATE_H_
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/generate.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct GenerateOptions {
  std::string prompt = "The";
  int64_t count = 64;  // tokens at most
  host::Sampling sampling;
};
// Prints the prompt and what the model makes of it, token by token. Prompt and answer together are
// at most the model's context.
absl::Status RunGenerate(const host::Model& model, host::EngineOptions engine,
                         const GenerateOptions& options);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_GENERATE_H_
