#include "sluice/runtime/store/store.h"

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
absl::Status CheckCursor(absl::string_view name, uint64_t after, uint64_t oldest, uint64_t newest) {
  if (newest < after) {
    return absl::DataLossError(absl::StrCat(name, ": the newest outcome is ", newest, ", but ",
                                            after, " were read before: the log lost its end"));
  }
  if (oldest > after + 1) {
    return absl::DataLossError(absl::StrCat(name, ": outcomes ", after + 1, " to ", oldest - 1,
                                            " were removed before they were read; the oldest is ",
                                            oldest));
  }
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
