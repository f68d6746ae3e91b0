#ifndef SLUICE_RUNTIME_SERVICE_HTTP_KEYS_H_
#define SLUICE_RUNTIME_SERVICE_HTTP_KEYS_H_
// Bearer keys of the HTTP side: a file of "NAME KEY" a line, # begins a comment. A name may have
// several keys, so that one can be exchanged for another.
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class BearerKeys {
 public:
  static absl::StatusOr<std::unique_ptr<BearerKeys>> Open(const std::string& path);
  virtual ~BearerKeys() = default;
  // Whose key this is; none: nobody's. How long it takes does not depend on how much of the key is
  // right. Reads the file again where it changed; one that is being rewritten badly keeps the keys
  // that were there.
  virtual std::optional<std::string> NameOf(absl::string_view key) = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_HTTP_KEYS_H_
