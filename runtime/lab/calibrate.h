#ifndef SLUICE_RUNTIME_LAB_CALIBRATE_H_
#define SLUICE_RUNTIME_LAB_CALIBRATE_H_
// Learned methods' inputs from files to files: closed-form fits of Informed Routing and SPT's
// routed FFN, a schedule for FTP.
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "sluice/runtime/lab/calibrate_informed.h"
#include "sluice/runtime/lab/calibrate_spt.h"
#include "sluice/runtime/lab/evaluate/pruning_task.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct CalibrateRun {
  std::string model, tokens;
  int64_t skip = 0;
  int64_t count = 2048;  // tokens to fit on
  CalibrateOptions fit;
  std::string out = "informed_routing.gguf";
};
absl::Status RunCalibrate(const CalibrateRun& run);

struct CalibrateSptRun {
  std::string model, tokens;
  int64_t skip = 0;
  int64_t count = 4096;  // tokens to fit on
  SptOptions fit;
  std::string out = "spt.gguf";
};
absl::Status RunCalibrateSpt(const CalibrateSptRun& run);

struct ScheduleRun {
  std::string model, tokens;
  std::string weights;  // of a trained router; "": the static router
  ScheduleOptions search;
};
// Prints the schedule, one sparsity a block.
absl::Status RunSearchSchedule(ScheduleRun run);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_CALIBRATE_H_
