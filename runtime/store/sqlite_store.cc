#include <sqlite3.h>

#include <mutex>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int kSchema = 1;

class SqliteStore final : public Store {
 public:
  ~SqliteStore() override {
    for (sqlite3_stmt* s : {append_, newest_, read_, save_, load_, get_, put_, lease_})
      sqlite3_finalize(s);
    sqlite3_close(db_);
  }
  absl::Status Open(const std::string& path) {
    path_ = path;
    if (sqlite3_open_v2(path.c_str(), &db_,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                        nullptr) != SQLITE_OK) {
      return Failed("open");
    }
    sqlite3_busy_timeout(db_, 5000);
    // One writer for the file's life: a second server on it fails here instead of interleaving.
    for (const char* sql :
         {"PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL",
          "CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT "
          "ROWID",
          "CREATE TABLE IF NOT EXISTS outcome(sequence INTEGER PRIMARY KEY, id INTEGER NOT NULL "
          "UNIQUE, record BLOB NOT NULL)",
          "CREATE TABLE IF NOT EXISTS snapshot(key TEXT PRIMARY KEY, through INTEGER NOT NULL, "
          "state "
          "BLOB NOT NULL) WITHOUT ROWID"}) {
      if (sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) return Failed(sql);
    }
    const std::pair<sqlite3_stmt**, const char*> statements[] = {
        {&append_, "INSERT OR IGNORE INTO outcome(id, record) VALUES(?1, ?2)"},
        {&newest_, "SELECT max(sequence) FROM outcome"},
        {&read_, "SELECT sequence, record FROM outcome WHERE sequence > ?1 ORDER BY sequence"},
        {&save_, "INSERT OR REPLACE INTO snapshot(key, through, state) VALUES(?1, ?2, ?3)"},
        {&load_, "SELECT through, state FROM snapshot WHERE key = ?1"},
        {&get_, "SELECT value FROM meta WHERE key = ?1"},
        {&put_, "INSERT OR IGNORE INTO meta(key, value) VALUES(?1, ?2)"},
        {&lease_,
         "INSERT INTO meta(key, value) VALUES('next_id', 1 + ?1) ON CONFLICT(key) DO UPDATE SET "
         "value = value + ?1 "
         "RETURNING value"}};
    for (const auto& [s, sql] : statements) {
      if (sqlite3_prepare_v2(db_, sql, -1, s, nullptr) != SQLITE_OK) return Failed(sql);
    }
    SLUICE_ASSIGN_OR_RETURN(const std::string schema, GetOrPut("schema", absl::StrCat(kSchema)));
    if (schema != absl::StrCat(kSchema)) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, " has schema ", schema, ", this version reads ", kSchema));
    }
    return absl::OkStatus();
  }
  absl::string_view name() const override { return "sqlite"; }
  bool shared() const override { return false; }

  absl::StatusOr<uint64_t> LeaseIds(uint64_t count) override {
    std::lock_guard lock(mutex_);
    Use use(lease_);
    sqlite3_bind_int64(lease_, 1, static_cast<int64_t>(count));
    if (sqlite3_step(lease_) != SQLITE_ROW) return Failed("lease ids");
    const uint64_t end = static_cast<uint64_t>(sqlite3_column_int64(lease_, 0));
    if (sqlite3_step(lease_) != SQLITE_DONE) return Failed("lease ids");
    return end - count;
  }
  absl::StatusOr<std::vector<bool>> Append(absl::Span<const StoredOutcome> outcomes) override {
    std::lock_guard lock(mutex_);
    if (sqlite3_exec(db_, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr) != SQLITE_OK)
      return Failed("begin");
    std::vector<bool> fresh;
    for (const StoredOutcome& o : outcomes) {
      Use use(append_);
      sqlite3_bind_int64(append_, 1, static_cast<int64_t>(o.decision_id));
      sqlite3_bind_blob(append_, 2, o.bytes.data(), static_cast<int>(o.bytes.size()),
                        SQLITE_STATIC);
      if (sqlite3_step(append_) != SQLITE_DONE) return Rollback("append");
      fresh.push_back(sqlite3_changes(db_) > 0);
    }
    if (sqlite3_exec(db_, "COMMIT", nullptr, nullptr, nullptr) != SQLITE_OK)
      return Rollback("commit");
    return fresh;
  }
  absl::StatusOr<uint64_t> Newest() override {
    std::lock_guard lock(mutex_);
    Use use(newest_);
    if (sqlite3_step(newest_) != SQLITE_ROW) return Failed("newest");
    return static_cast<uint64_t>(sqlite3_column_int64(newest_, 0));
  }
  absl::Status Read(uint64_t after,
                    absl::FunctionRef<void(uint64_t, absl::string_view)> visit) override {
    std::lock_guard lock(mutex_);
    Use use(read_);
    sqlite3_bind_int64(read_, 1, static_cast<int64_t>(after));
    int rc;
    while ((rc = sqlite3_step(read_)) == SQLITE_ROW) {
      visit(static_cast<uint64_t>(sqlite3_column_int64(read_, 0)), Blob(read_, 1));
    }
    return rc == SQLITE_DONE ? absl::OkStatus() : Failed("read");
  }
  absl::Status SaveSnapshot(const std::string& key, const StoredSnapshot& s) override {
    std::lock_guard lock(mutex_);
    Use use(save_);
    sqlite3_bind_text(save_, 1, key.data(), static_cast<int>(key.size()), SQLITE_STATIC);
    sqlite3_bind_int64(save_, 2, static_cast<int64_t>(s.through));
    sqlite3_bind_blob(save_, 3, s.bytes.data(), static_cast<int>(s.bytes.size()), SQLITE_STATIC);
    return sqlite3_step(save_) == SQLITE_DONE ? absl::OkStatus() : Failed("save snapshot");
  }
  absl::StatusOr<StoredSnapshot> LoadSnapshot(const std::string& key) override {
    std::lock_guard lock(mutex_);
    Use use(load_);
    sqlite3_bind_text(load_, 1, key.data(), static_cast<int>(key.size()), SQLITE_STATIC);
    const int rc = sqlite3_step(load_);
    if (rc == SQLITE_DONE) return absl::NotFoundError("no snapshot");
    if (rc != SQLITE_ROW) return Failed("load snapshot");
    return StoredSnapshot{static_cast<uint64_t>(sqlite3_column_int64(load_, 0)),
                          std::string(Blob(load_, 1))};
  }
  absl::StatusOr<std::string> GetOrPut(const std::string& key, const std::string& value) override {
    std::lock_guard lock(mutex_);
    {
      Use use(put_);
      sqlite3_bind_text(put_, 1, key.data(), static_cast<int>(key.size()), SQLITE_STATIC);
      sqlite3_bind_blob(put_, 2, value.data(), static_cast<int>(value.size()), SQLITE_STATIC);
      if (sqlite3_step(put_) != SQLITE_DONE) return Failed("put");
    }
    Use use(get_);
    sqlite3_bind_text(get_, 1, key.data(), static_cast<int>(key.size()), SQLITE_STATIC);
    if (sqlite3_step(get_) != SQLITE_ROW) return Failed("get");
    return std::string(Blob(get_, 0));
  }

 private:
  struct Use {  // a prepared statement, clean again afterwards
    explicit Use(sqlite3_stmt* s) : s(s) {}
    ~Use() {
      sqlite3_reset(s);
      sqlite3_clear_bindings(s);
    }
    sqlite3_stmt* s;
  };
  static absl::string_view Blob(sqlite3_stmt* s, int column) {
    const void* p = sqlite3_column_blob(s, column);
    return {static_cast<const char*>(p), static_cast<size_t>(sqlite3_column_bytes(s, column))};
  }
  absl::Status Failed(absl::string_view what) const {
    return absl::UnavailableError(
        absl::StrCat(path_, ": ", what, ": ", db_ != nullptr ? sqlite3_errmsg(db_) : "no memory"));
  }
  absl::Status Rollback(absl::string_view what) {
    absl::Status status = Failed(what);
    sqlite3_exec(db_, "ROLLBACK", nullptr, nullptr, nullptr);
    return status;
  }
  std::mutex mutex_;  // the serving thread leases ids, the learner does the rest
  std::string path_;
  sqlite3* db_ = nullptr;
  sqlite3_stmt *append_ = nullptr, *newest_ = nullptr, *read_ = nullptr, *save_ = nullptr,
               *load_ = nullptr, *get_ = nullptr, *put_ = nullptr, *lease_ = nullptr;
};
}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& path) {
  auto store = std::make_unique<SqliteStore>();
  SLUICE_RETURN_IF_ERROR(store->Open(path));
  return store;
}
SLUICE_END_NAMESPACE
