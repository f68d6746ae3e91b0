#ifndef SLUICE_RUNTIME_SERVICE_EPOCHS_H_
#define SLUICE_RUNTIME_SERVICE_EPOCHS_H_
#include <algorithm>
#include <cstdint>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Numbers batches of decisions. Labelled outcomes are decisions that were made elsewhere: they
// count once they are known to be new, since others would move epochs on until receipts are late.
class Epochs {
 public:
  void Set(uint64_t first, uint32_t size) {
    now_ = std::max(now_, first);
    size_ = std::max<uint32_t>(1, size);
  }
  // Other servers are further.
  void CatchUp(uint64_t newest) { now_ = std::max(now_, newest); }
  uint64_t now() const { return now_; }
  void Decided() { Advance(1); }
  // The epoch of a labelled outcome that is on its way to the store.
  uint64_t Labelled() { return now_ + (inside_ + waiting_++) / size_; }
  // It came there.
  void LabelledDone(bool fresh) {
    waiting_ = waiting_ > 0 ? waiting_ - 1 : 0;
    if (fresh) Advance(1);
  }

 private:
  void Advance(uint32_t decisions) {
    inside_ += decisions;
    now_ += inside_ / size_;
    inside_ %= size_;
  }
  uint64_t now_ = 1;
  uint32_t size_ = 64;
  uint32_t inside_ = 0;
  uint32_t waiting_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_EPOCHS_H_
