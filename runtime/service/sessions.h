#ifndef SLUICE_RUNTIME_SERVICE_SESSIONS_H_
#define SLUICE_RUNTIME_SERVICE_SESSIONS_H_
#include <cstdint>
#include <list>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/strings/string_view.h"
#include "sluice/runtime/base/hash.h"

SLUICE_BEGIN_NAMESPACE
// Which agents a session had last, by its name; those that were longest not seen are forgotten.
class Sessions {
 public:
  struct Last {
    uint64_t graph = 0;  // whose numbers the path is in
    std::vector<int32_t> path;
  };
  void SetMost(size_t most) {
    most_ = most;
    Shrink();
  }
  // Null: not remembered.
  const Last* Find(absl::string_view session) {
    const auto at = by_name_.find(HashText(session));
    if (at == by_name_.end()) return nullptr;
    order_.splice(order_.begin(), order_, at->second.place);
    return &at->second.last;
  }
  void Remember(absl::string_view session, uint64_t graph, const std::vector<int32_t>& path) {
    const uint64_t hash = HashText(session);
    const auto [at, fresh] = by_name_.try_emplace(hash);
    if (fresh) {
      order_.push_front(hash);
      at->second.place = order_.begin();
    } else {
      order_.splice(order_.begin(), order_, at->second.place);
    }
    at->second.last = {graph, path};
    Shrink();
  }

 private:
  struct Entry {
    Last last;
    std::list<uint64_t>::iterator place;
  };
  void Shrink() {
    while (by_name_.size() > most_) {
      by_name_.erase(order_.back());
      order_.pop_back();
    }
  }
  size_t most_ = 0;
  std::list<uint64_t> order_;  // newest first
  std::unordered_map<uint64_t, Entry> by_name_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_SESSIONS_H_
