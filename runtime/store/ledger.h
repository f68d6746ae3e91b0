#ifndef SLUICE_RUNTIME_STORE_LEDGER_H_
#define SLUICE_RUNTIME_STORE_LEDGER_H_
// What one agent router has learned: integer sums of the open epochs over a folded base. Adding
// commutes, so the state is the same for every order of arrival in which no outcome is later than
// `window` epochs; those that are count for the oldest open epoch, and are counted.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/agent_router.h"

SLUICE_BEGIN_NAMESPACE
class Ledger {
 public:
  // Both are borrowed for the ledger's life.
  Ledger(const AgentRouter& router, const AgentRouter::Plan& plan, int64_t window = 64)
      : router_(&router), plan_(&plan), window_(std::max<int64_t>(1, window)), base_(Width()) {
    router.InitialState(plan, absl::MakeSpan(base_));
  }

  // Deltas of one outcome of `epoch`. Cells outside the plan are ignored: they belong to another
  // graph.
  void Add(uint64_t epoch, absl::Span<const SumDelta> deltas) {
    std::vector<int64_t>& sums = Open(epoch).sums;
    for (const SumDelta& d : deltas) {
      if (d.cell < sums.size()) sums[d.cell] += d.add;
    }
    ++outcomes_;
  }
  // Everything folded, [plan.state]. Valid until the next Add. O(epochs touched since * Fold).
  absl::Span<const double> State() {
    for (; clean_ < epochs_.size(); ++clean_) {
      Epoch& e = epochs_[clean_];
      e.after = clean_ == 0 ? base_ : epochs_[clean_ - 1].after;
      router_->Fold(*plan_, e.sums, absl::MakeSpan(e.after));
    }
    return epochs_.empty() ? base_ : epochs_.back().after;
  }
  uint64_t newest() const { return newest_; }
  int64_t outcomes() const { return outcomes_; }
  int64_t late() const { return late_; }

  // Little-endian words: version, sizes, counters, base, open epochs.
  std::string Serialize() const {
    std::string out;
    auto put = [&](const void* p, size_t n) { out.append(static_cast<const char*>(p), n); };
    const uint64_t head[] = {kMagic,
                             base_.size(),
                             static_cast<uint64_t>(plan_->info().sums),
                             epochs_.size(),
                             newest_,
                             static_cast<uint64_t>(outcomes_),
                             static_cast<uint64_t>(late_)};
    put(head, sizeof head);
    put(base_.data(), base_.size() * sizeof(double));
    for (const Epoch& e : epochs_) {
      put(&e.number, sizeof e.number);
      put(e.sums.data(), e.sums.size() * sizeof(int64_t));
    }
    return out;
  }
  // Replaces what is here; unchanged when the text is of another shape.
  absl::Status Parse(absl::string_view text) {
    uint64_t head[7];
    if (text.size() < sizeof head)
      return absl::DataLossError(absl::StrCat("snapshot of ", text.size(), " bytes is cut short"));
    std::memcpy(head, text.data(), sizeof head);
    const size_t sums = static_cast<size_t>(plan_->info().sums);
    if (head[0] != kMagic) return absl::DataLossError("snapshot does not begin with its magic");
    if (head[1] != base_.size() || head[2] != sums) {
      return absl::FailedPreconditionError(
          absl::StrCat("snapshot holds ", head[1], " numbers and ", head[2],
                       " sums, this router and graph have ", base_.size(), " and ", sums));
    }
    const size_t each = (1 + sums) * 8;
    if (head[3] > static_cast<uint64_t>(window_) ||
        text.size() != sizeof head + base_.size() * 8 + head[3] * each) {
      return absl::DataLossError(absl::StrCat("snapshot of ", text.size(), " bytes with ", head[3],
                                              " epochs does not add up"));
    }
    const char* at = text.data() + sizeof head;
    auto copy = [](void* to, const char* from,
                   size_t n) {  // routers that never learn have nothing to copy to
      if (n > 0) std::memcpy(to, from, n);
    };
    copy(base_.data(), at, base_.size() * 8);
    at += base_.size() * 8;
    epochs_.clear();
    for (uint64_t i = 0; i < head[3]; ++i, at += each) {
      Epoch e;
      e.sums.resize(sums);
      copy(&e.number, at, 8);
      copy(e.sums.data(), at + 8, sums * 8);
      epochs_.push_back(std::move(e));
    }
    newest_ = head[4];
    outcomes_ = static_cast<int64_t>(head[5]);
    late_ = static_cast<int64_t>(head[6]);
    clean_ = 0;
    return absl::OkStatus();
  }

 private:
  static constexpr uint64_t kMagic = 0x31474C4543554C53;  // "SLUCELG1"
  struct Epoch {
    uint64_t number = 0;
    std::vector<int64_t> sums;
    std::vector<double> after;
  };
  size_t Width() const { return static_cast<size_t>(plan_->info().state); }
  Epoch& Open(uint64_t epoch) {
    if (epoch > newest_) newest_ = epoch;
    // Epochs that left the window become the base. Their fold is the same now as whenever it was
    // read.
    const uint64_t oldest = newest_ >= static_cast<uint64_t>(window_)
                                ? newest_ - static_cast<uint64_t>(window_) + 1
                                : 0;
    while (!epochs_.empty() && epochs_.front().number < oldest) {
      router_->Fold(*plan_, epochs_.front().sums, absl::MakeSpan(base_));
      epochs_.pop_front();
      if (clean_ > 0) --clean_;
    }
    if (epoch < oldest) {
      epoch = oldest;
      ++late_;
    }
    auto at = std::lower_bound(epochs_.begin(), epochs_.end(), epoch,
                               [](const Epoch& e, uint64_t number) { return e.number < number; });
    const size_t index = static_cast<size_t>(at - epochs_.begin());
    if (at == epochs_.end() || at->number != epoch) {
      at = epochs_.insert(at, Epoch{});
      at->number = epoch;
      at->sums.resize(plan_->info().sums);
    }
    clean_ = std::min(clean_, index);
    return *at;
  }
  const AgentRouter* router_;
  const AgentRouter::Plan* plan_;
  int64_t window_;
  std::vector<double> base_;
  std::deque<Epoch> epochs_;  // ascending
  size_t clean_ = 0;          // epochs whose `after` is up to date
  uint64_t newest_ = 0;
  int64_t outcomes_ = 0, late_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_STORE_LEDGER_H_
