#ifndef SLUICE_RUNTIME_SERVICE_RECEIPT_H_
#define SLUICE_RUNTIME_SERVICE_RECEIPT_H_
// A decision that its caller carries: the record and 16 bytes of SipHash under the state's own key.
// Whatever happens to the server, the receipt still says what was decided, and nobody else can make
// one.
#include <sodium.h>

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sluice/runtime/store/record.h"

SLUICE_BEGIN_NAMESPACE
class Receipts {
 public:
  static constexpr size_t kKeyBytes = crypto_shorthash_siphashx24_KEYBYTES,
                          kTagBytes = crypto_shorthash_siphashx24_BYTES;
  static std::string NewKey() {
    std::string key(kKeyBytes, '\0');
    randombytes_buf(key.data(), key.size());
    return key;
  }
  explicit Receipts(std::string key) : key_(std::move(key)) { key_.resize(kKeyBytes); }
  void Make(const DecisionRecord& d, std::string& out) const {
    out.clear();
    AppendDecision(d, out);
    const size_t n = out.size();
    out.resize(n + kTagBytes);
    Tag(out.data(), n, reinterpret_cast<unsigned char*>(&out[n]));
  }
  absl::StatusOr<DecisionRecord> Open(absl::string_view receipt) const {
    if (receipt.size() < kTagBytes)
      return absl::InvalidArgumentError(
          absl::StrCat("receipt of ", receipt.size(), " bytes is cut short"));
    const size_t n = receipt.size() - kTagBytes;
    unsigned char tag[kTagBytes];
    Tag(receipt.data(), n, tag);
    if (sodium_memcmp(tag, receipt.data() + n, kTagBytes) != 0) {
      return absl::InvalidArgumentError("receipt was not made by this state, or was changed");
    }
    return ParseDecision(receipt.substr(0, n));
  }

 private:
  void Tag(const char* data, size_t n, unsigned char* tag) const {
    crypto_shorthash_siphashx24(tag, reinterpret_cast<const unsigned char*>(data), n,
                                reinterpret_cast<const unsigned char*>(key_.data()));
  }
  std::string key_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_RECEIPT_H_
