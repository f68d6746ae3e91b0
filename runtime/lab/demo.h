#ifndef SLUICE_RUNTIME_LAB_DEMO_H_
#define SLUICE_RUNTIME_LAB_DEMO_H_
// One long prompt with planted facts under every router: time, density and what the model still
// knows, as a table and an HTML report.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/facts.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct DemoOptions {
  int64_t length = 16000;  // prompt tokens, from 256 to the model's context
  int64_t facts = 16;      // planted in it, 1 to 16
  host::FactWording wording;
  std::string text;  // file; "": the project's own headers and documents
  std::string report = "report.html";
  std::vector<std::string> routers;  // the first is the baseline; empty: all, and then the encoder
};
absl::Status RunDemo(const host::Model& model, host::EngineOptions engine, DemoOptions demo);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_DEMO_H_
