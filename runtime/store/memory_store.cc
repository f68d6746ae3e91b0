#include <map>
#include <mutex>
#include <set>

#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
namespace {
class MemoryStore final : public Store {
 public:
  absl::string_view name() const override { return "memory"; }
  bool shared() const override { return false; }
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
      if (fresh.back()) log_.push_back(o.bytes);
    }
    return fresh;
  }
  absl::StatusOr<uint64_t> Newest() override {
    std::lock_guard lock(mutex_);
    return log_.size();
  }
  absl::Status Read(uint64_t after,
                    absl::FunctionRef<void(uint64_t, absl::string_view)> visit) override {
    std::lock_guard lock(mutex_);
    for (uint64_t i = after; i < log_.size(); ++i) visit(i + 1, log_[i]);
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
  std::mutex mutex_;
  uint64_t next_id_ = 1;
  std::vector<std::string> log_;
  std::set<uint64_t> seen_;
  std::map<std::string, StoredSnapshot> snapshots_;
  std::map<std::string, std::string> values_;
};
}  // namespace
std::unique_ptr<Store> MakeMemoryStore() { return std::make_unique<MemoryStore>(); }
SLUICE_END_NAMESPACE
