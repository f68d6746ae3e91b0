#include "sluice/runtime/dynload/child_check.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using Clock = std::chrono::steady_clock;
using Load = absl::FunctionRef<absl::StatusOr<std::string>()>;
using Seal = std::array<unsigned char, 16>;

constexpr size_t kMaxText = size_t{1} << 20;

struct Report {
  Seal seal;  // written last
  int32_t code;
  uint32_t length;
  char text[kMaxText];
};

// The memory that parent and child share.
class SharedReport {
 public:
  SharedReport() {
    void* p =
        mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    report_ = p == MAP_FAILED ? nullptr : static_cast<Report*>(p);
  }
  ~SharedReport() {
    if (report_ != nullptr) munmap(report_, sizeof(Report));
  }
  SharedReport(const SharedReport&) = delete;
  SharedReport& operator=(const SharedReport&) = delete;
  Report* get() const { return report_; }

 private:
  Report* report_;
};

// `errno` as a sentence's end.
std::string Why() { return absl::StrCat(": ", std::strerror(errno)); }

// ---- In the child ----------------------------------------------------------------------------

// None of the host's files may be written to, and none of its pipes be kept open.
void DropDescriptors() {
  const int null = open("/dev/null", O_RDWR);
  if (null < 0) _exit(1);
  dup2(null, STDIN_FILENO);
  dup2(null, STDOUT_FILENO);
  if (close_range(STDERR_FILENO + 1, ~0U, 0) == 0) return;
  // A kernel without that call.
  rlimit most{};
  getrlimit(RLIMIT_NOFILE, &most);
  const auto end = static_cast<int>(std::min<rlim_t>(most.rlim_cur, rlim_t{1} << 20));
  for (int fd = STDERR_FILENO + 1; fd < end; ++fd) close(fd);
}

// The host's handlers are for its own crashes; a crash here shall end the child by its signal.
// What the host ignores stays ignored, as across exec.
void DropSignalHandlers() {
  for (int s = 1; s < NSIG; ++s) {
    struct sigaction action;
    if (sigaction(s, nullptr, &action) == 0 && action.sa_handler != SIG_IGN) signal(s, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

// noexcept: an exception must end the child and not unwind into its copy of the host's stack.
[[noreturn]] void RunChild(pid_t parent, Report* report, const Seal& seal, Load load) noexcept {
  setsid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it ended before the line above
  DropDescriptors();
  DropSignalHandlers();
  const rlimit no_core{};
  setrlimit(RLIMIT_CORE, &no_core);
  // Runs before the handlers that the host registered, which must not see this process end.
  std::atexit([] { _exit(1); });
  const pid_t self = getpid();
  mprotect(report, sizeof(Report), PROT_NONE);

  const absl::StatusOr<std::string> said = load();

  if (getpid() != self) _exit(1);  // a fork made inside `load` came back from it, too
  if (mprotect(report, sizeof(Report), PROT_READ | PROT_WRITE) != 0) _exit(1);
  std::string text = said.ok() ? *said : std::string(said.status().message());
  absl::StatusCode code = said.status().code();
  if (text.size() > kMaxText) {
    code = absl::StatusCode::kResourceExhausted;
    text =
        absl::StrCat("it says ", text.size(), " bytes of itself, at most ", kMaxText, " are read");
  }
  report->code = static_cast<int32_t>(code);
  report->length = static_cast<uint32_t>(text.size());
  std::memcpy(report->text, text.data(), text.size());
  std::atomic_thread_fence(std::memory_order_release);
  report->seal = seal;
  _exit(0);
}

// ---- In the parent ---------------------------------------------------------------------------

enum class Ending { kExited, kKilled, kUnknown };
struct Ended {
  Ending how = Ending::kUnknown;  // unknown: the host ignores SIGCHLD or reaps every child itself
  int value = 0;                  // exit status or signal
};

// Waits until `deadline`; the child stays a zombie, so that its number stays its own.
std::optional<Ended> AwaitEnd(pid_t child, Clock::time_point deadline) {
  while (true) {
    siginfo_t info{};
    const int r = waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT);
    if (r != 0 && errno == ECHILD) return Ended{};
    if (r == 0 && info.si_pid == child) {
      const Ending how = info.si_code == CLD_EXITED ? Ending::kExited : Ending::kKilled;
      return Ended{how, info.si_status};
    }
    if (Clock::now() >= deadline) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Ends whatever is left of the child's session, then the child.
void KillAndReap(pid_t child) {
  kill(-child, SIGKILL);
  kill(child, SIGKILL);  // it may not have come to open its session
  // What SIGKILL does not end within a second hangs in the kernel: better a zombie than to hang
  // too.
  if (AwaitEnd(child, Clock::now() + std::chrono::seconds(1)).has_value()) {
    waitpid(child, nullptr, WNOHANG);
  }
}

// What the child left in `shared`, if it is an answer.
std::optional<absl::StatusOr<std::string>> Read(const Report& shared, const Seal& seal) {
  if (shared.seal != seal || shared.length > kMaxText) return std::nullopt;
  std::string text(shared.text, shared.length);
  if (shared.code == 0) return text;
  return absl::Status(static_cast<absl::StatusCode>(shared.code), text);
}
}  // namespace

absl::StatusOr<std::string> CheckInChild(Load load, std::chrono::milliseconds limit) {
  if (limit.count() <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a time limit of ", limit.count(), " ms, wanted above 0"));
  }
  Seal seal;
  if (getrandom(seal.data(), seal.size(), 0) != static_cast<ssize_t>(seal.size())) {
    return absl::InternalError(absl::StrCat("no random numbers", Why()));
  }
  const SharedReport shared;
  if (shared.get() == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory to share with a child", Why()));
  }
  const Clock::time_point deadline = Clock::now() + limit;
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) return absl::ResourceExhaustedError(absl::StrCat("no child process", Why()));
  if (child == 0) RunChild(parent, shared.get(), seal, load);

  const std::optional<Ended> ended = AwaitEnd(child, deadline);
  // Its number may be another's by now if someone else reaped it.
  if (!ended.has_value() || ended->how != Ending::kUnknown) KillAndReap(child);
  if (!ended.has_value()) {
    return absl::DeadlineExceededError(absl::StrCat(
        "it does not finish loading within ", static_cast<double>(limit.count()) / 1000, " s"));
  }
  if (ended->how == Ending::kKilled) {
    return absl::InternalError(
        absl::StrCat("it crashes when it is loaded (signal ", ended->value, ")"));
  }
  std::optional<absl::StatusOr<std::string>> said = Read(*shared.get(), seal);
  if (!said.has_value()) return absl::InternalError("it ends the process when it is loaded");
  return *std::move(said);
}

absl::StatusOr<int> OpenRegularFile(const std::string& path) {
  const auto refuse = [&](mode_t mode) {
    const char* what = S_ISDIR(mode)    ? "a directory"
                       : S_ISFIFO(mode) ? "a FIFO"
                       : S_ISSOCK(mode) ? "a socket"
                                        : "a device";
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": it is ", what, ", wanted a regular file"));
  };
  struct stat file;
  // Before it is opened: to open some devices is to act on them.
  if (stat(path.c_str(), &file) != 0) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read", Why()));
  }
  if (!S_ISREG(file.st_mode)) return refuse(file.st_mode);
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return absl::NotFoundError(absl::StrCat(path, ": cannot be read", Why()));
  // Again: it may have been replaced in between.
  if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) {
    close(fd);
    return refuse(file.st_mode);
  }
  return fd;
}
SLUICE_END_NAMESPACE
