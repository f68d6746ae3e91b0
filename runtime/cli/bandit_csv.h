#ifndef SLUICE_RUNTIME_CLI_BANDIT_CSV_H_
#define SLUICE_RUNTIME_CLI_BANDIT_CSV_H_
// Logged decisions in Open Bandit Pipeline's columns, which off-policy evaluation elsewhere reads.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
// timestamp, position (always 0), action, reward, pscore, context_0 and so on: one of `contexts`.
class BanditCsv {
 public:
  static absl::StatusOr<std::unique_ptr<BanditCsv>> Create(const std::string& path,
                                                           size_t contexts) {
    std::unique_ptr<FILE, Closer> file(std::fopen(path.c_str(), "w"));
    if (file == nullptr) return absl::UnavailableError(path + ": cannot be written");
    std::fprintf(file.get(), "timestamp,position,action,reward,pscore");
    for (size_t i = 0; i < contexts; ++i) std::fprintf(file.get(), ",context_%zu", i);
    std::fprintf(file.get(), "\n");
    return std::unique_ptr<BanditCsv>(new BanditCsv(path, std::move(file)));
  }
  void Add(int64_t timestamp, int64_t action, double reward, double propensity,
           absl::Span<const double> context) {
    std::fprintf(file_.get(), "%lld,0,%lld,%.15g,%.15g", static_cast<long long>(timestamp),
                 static_cast<long long>(action), reward, propensity);
    for (double x : context) std::fprintf(file_.get(), ",%.6g", x);
    std::fprintf(file_.get(), "\n");
  }
  absl::Status Close() {
    const bool wrong = std::ferror(file_.get()) != 0;
    const bool unclosed = std::fclose(file_.release()) != 0;
    if (wrong || unclosed) return absl::UnavailableError(path_ + ": cannot be written");
    return absl::OkStatus();
  }

 private:
  struct Closer {
    void operator()(FILE* f) const { std::fclose(f); }
  };
  BanditCsv(std::string path, std::unique_ptr<FILE, Closer> file)
      : path_(std::move(path)), file_(std::move(file)) {}
  std::string path_;
  std::unique_ptr<FILE, Closer> file_;
};
}  // namespace cli
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_CLI_BANDIT_CSV_H_
