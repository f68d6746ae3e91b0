#ifndef SLUICE_RUNTIME_SERVICE_ANSWERS_H_
#define SLUICE_RUNTIME_SERVICE_ANSWERS_H_
// Decisions as the bytes of a sluice.v1.RouteResponse. A message object for each of them costs
// more to fill and to serialise than the decision costs to make.
#include <array>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"
#include "sluice/api/agent_router.h"
#include "sluice/runtime/service/best_candidates.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
// An agent's id as the text field of a message, without the field's number: its length, then the
// id. It is encoded once a team. Most are short, and copying a fixed number of bytes is a few
// instructions where copying as many as there are is a call.
class AgentField {
 public:
  // Bytes that must be free behind where it is put.
  static constexpr size_t kSlack = 32;

  explicit AgentField(absl::string_view id);
  size_t size() const { return size_; }
  // Returns where it ended.
  char* Put(char* to) const {
    if (size_ <= kSlack) {
      std::memcpy(to, short_.data(), kSlack);
    } else {
      std::memcpy(to, long_.data(), size_);
    }
    return to + size_;
  }

 private:
  size_t size_;
  std::array<char, kSlack> short_{};
  std::string long_;
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
  // Room for so many bytes, and for the slack of what is put there.
  char* Grow(size_t more);

  std::string bytes_;  // filled up to size_
  size_t size_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_ANSWERS_H_
