#include <algorithm>
#include <deque>
#include <map>
#include <mutex>

#include "absl/container/flat_hash_set.h"
#include "sluice/api/check.h"
#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
namespace {
class MemoryStore final : public Store {
 public:
  explicit MemoryStore(uint64_t bound) : bound_(std::max<uint64_t>(1, bound)) {}
  absl::string_view name() const override { return "memory"; }
  bool shared() const override { return false; }
  bool durable() const override { return false; }
  std::string durability() const override { return "memory, lost at exit"; }

  absl::StatusOr<uint64_t> LeaseIds(uint64_t count) override {
    std::lock_guard lock(mutex_);
    const uint64_t first = next_id_;
    next_id_ += count;
    return first;
  }
  absl::StatusOr<std::vector<bool>> Append(absl::Span<const StoredOutcome> outcomes) override {
    std::lock_guard lock(mutex_);
    std::vector<bool> fresh;
    for (const StoredOutcome& o : outcomes) {
      fresh.push_back(seen_.insert(o.decision_id).second);
      if (fresh.back()) Keep(o);
    }
    return fresh;
  }
  absl::StatusOr<uint64_t> Newest() override {
    std::lock_guard lock(mutex_);
    return newest();
  }
  absl::StatusOr<uint64_t> Oldest() override {
    std::lock_guard lock(mutex_);
    return oldest_;
  }
  absl::Status Read(uint64_t after,
                    absl::FunctionRef<void(uint64_t, absl::string_view)> visit) override {
    for (;; ++after) {
      std::string record;  // whoever visits may use the store
      {
        std::lock_guard lock(mutex_);
        SLUICE_RETURN_IF_ERROR(CheckCursor("memory", after, oldest_, newest()));
        if (after == newest()) return absl::OkStatus();
        record = log_[after + 1 - oldest_];
      }
      visit(after + 1, record);
    }
  }
  absl::Status Trim(uint64_t before) override {
    std::lock_guard lock(mutex_);
    while (!log_.empty() && oldest_ < before) DropOldest();
    return absl::OkStatus();
  }
  absl::Status SaveSnapshot(const std::string& key, const StoredSnapshot& s) override {
    std::lock_guard lock(mutex_);
    snapshots_[key] = s;
    return absl::OkStatus();
  }
  absl::StatusOr<StoredSnapshot> LoadSnapshot(const std::string& key) override {
    std::lock_guard lock(mutex_);
    const auto it = snapshots_.find(key);
    if (it == snapshots_.end()) return absl::NotFoundError("no snapshot");
    return it->second;
  }
  absl::StatusOr<std::string> GetOrPut(const std::string& key, const std::string& value) override {
    std::lock_guard lock(mutex_);
    return values_.emplace(key, value).first->second;
  }

 private:
  uint64_t newest() const { return oldest_ + log_.size() - 1; }
  void Keep(const StoredOutcome& o) {
    log_.push_back(o.bytes);
    if (log_.size() > bound_) DropOldest();
    ids_.push_back(o.decision_id);
    if (ids_.size() <= bound_) return;
    seen_.erase(ids_.front());
    ids_.pop_front();
  }
  void DropOldest() {
    log_.pop_front();
    ++oldest_;
  }
  const uint64_t bound_;
  std::mutex mutex_;
  uint64_t next_id_ = 1;
  uint64_t oldest_ = 1;  // sequence of log_'s first
  std::deque<std::string> log_;
  absl::flat_hash_set<uint64_t> seen_;
  std::deque<uint64_t> ids_;  // those in seen_, oldest first
  std::map<std::string, StoredSnapshot> snapshots_;
  std::map<std::string, std::string> values_;
};
}  // namespace
std::unique_ptr<Store> MakeMemoryStore(uint64_t bound) {
  return std::make_unique<MemoryStore>(bound);
}
SLUICE_END_NAMESPACE
