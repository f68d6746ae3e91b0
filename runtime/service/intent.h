#ifndef SLUICE_RUNTIME_SERVICE_INTENT_H_
#define SLUICE_RUNTIME_SERVICE_INTENT_H_
// What a text is about: a distribution over the configured tasks.
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class IntentModel {
 public:
  virtual ~IntentModel() = default;
  virtual const std::vector<std::string>& tasks() const = 0;
  // intent: [tasks]. An empty text gives the classes' prior, or all alike.
  virtual absl::Status Infer(absl::string_view text, absl::Span<double> intent) const = 0;
};
// A GGUF file of `sluice intent train`, or of a BERT-style encoder (dense, or pruned by SHRP).
// Tasks of the model that `tasks` lacks are dropped and the rest renormalised; an error when
// nothing is left.
absl::StatusOr<std::unique_ptr<IntentModel>> LoadIntentModel(const std::string& path,
                                                             const std::vector<std::string>& tasks);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_INTENT_H_
