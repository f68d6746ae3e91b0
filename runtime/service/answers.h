#ifndef SLUICE_RUNTIME_SERVICE_ANSWERS_H_
#define SLUICE_RUNTIME_SERVICE_ANSWERS_H_
// Decisions as the bytes of a sluice.v1.RouteResponse. A message object for each of them costs
// more to fill and to serialise than the decision costs to make.
#include <array>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "sluice/api/agent_router.h"
#include "sluice/runtime/service/best_candidates.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
// An agent's id as the text field of a message: its length, then the id. It is encoded once a team.
class AgentField {
 public:
  explicit AgentField(absl::string_view id);
  // Without the field's number.
  absl::string_view bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class Answers {
 public:
  struct Stage {
    const AgentField* agent;
    std::array<const AgentField*, BestCandidates::kMost> fallbacks;
    size_t num_fallbacks;
  };
  // All borrowed for the call.
  struct Decision {
    uint64_t id = 0;
    double propensity = 0;
    bool kept = false;
    absl::string_view policy;
    absl::string_view receipt;
    int stages = 0;
    std::array<Stage, kMaxStages> of;  // each stage; the rest is not looked at
  };

  // Keeps the storage of answers up to kMostKept bytes.
  void Clear();
  void Add(const Decision& d);
  void Add(const v1::Decision& d);  // one that was refused
  // Of a RouteResponse.
  absl::string_view bytes() const { return {bytes_.data(), size_}; }

 private:
  static constexpr size_t kMostKept = size_t{1} << 20;
  char* Grow(size_t more);

  std::string bytes_;  // filled up to size_
  size_t size_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_ANSWERS_H_
