// What the sidecar reads from outside: configurations, receipts, stored outcomes, snapshots,
// outcome logs, requests.
#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/service/receipt.h"
#include "sluice/runtime/service/replay.h"
#include "sluice/runtime/store/ledger.h"
#include "sluice/runtime/text/ngram_classifier.h"
#include "sluice/v1/sidecar.pb.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  google::protobuf::SetLogHandler(nullptr);
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 6) {
    case 0:
      (void)sluice::ParseSettings(text, "fuzz");
      break;
    case 1:
      (void)sluice::ParseDecision(text);
      break;
    case 2:
      (void)sluice::ParseOutcome(text);
      break;
    case 3: {
      static const auto settings = *sluice::ParseSettings(
          "task: \"a\" stage { agent { id: \"x\" } agent { id: \"y\" } }", "fuzz");
      const auto& policy = settings.policies->policies[0];
      sluice::Ledger ledger(*policy.router, *policy.plan, 4);
      if (ledger.Parse(text).ok()) (void)ledger.State();
      break;
    }
    case 4: {
      static const int fd = memfd_create("log", 0);
      if (ftruncate(fd, 0) != 0 || pwrite(fd, text.data(), text.size(), 0) < 0) return 0;
      (void)sluice::LoadOutcomeLog(absl::StrCat("/proc/self/fd/", fd));
      break;
    }
    default: {
      sluice::v1::Request q;
      if (q.ParseFromString(text)) {
        for (const auto& query : q.route().queries())
          (void)sluice::NgramClassifier::Features(query.text(), 12);
      }
    }
  }
  return 0;
}
