// libmu: the C ABI of mu. See docs/capi.md. Made by cbindgen: edit the sources and make it anew.

#ifndef MU_H
#define MU_H



#include <stddef.h>
#include <stdint.h>

// The version of this interface. `mu_abi_version` says what the library has. It is raised by every change that a
// program would have to be compiled anew for, such as a further member of a structure: there is none without it.
#define MU_ABI_VERSION 1

// The leader is not known.
#define MU_NO_LEADER 255

// The replica has threads of its own; calls come from any thread. The default.
#define MU_MODE_THREADED 0

// The program's own thread replicates, inside of `mu_step` and of the calls that wait.
#define MU_MODE_STEP 1

// It has stopped.
#define MU_ROLE_STOPPED 0

// It has no state yet, and looks for one.
#define MU_ROLE_RECOVERING 1

// It has a state, and is not admitted yet.
#define MU_ROLE_LEARNER 2

// It applies what a leader writes.
#define MU_ROLE_FOLLOWER 3

// It asks for the right to lead.
#define MU_ROLE_CANDIDATE 4

// It leads.
#define MU_ROLE_LEADER 5

// In `mu_command.flags`: this replica leads. What the application tells the world is this replica's to tell.
#define MU_APPLY_LEADER 1

// In `mu_command.flags`: this replica is catching up on what was decided without it.
#define MU_APPLY_REPLAY 2

// How a call ended. Only where a code says "decided" is a command in the log for good.
typedef int32_t mu_result;

// How a replica is opened. `mu_options_init` fills in the defaults.
typedef struct mu_options {
  // Bytes of this structure, as the program knows it.
  size_t size;
  // MU_MODE_THREADED or MU_MODE_STEP.
  uint32_t mode;
  // Which member of the configuration this is.
  uint8_t id;
  // 1: founds the group, with empty memory. An operator's word, for the first start and no other. Where a peer has a
  // history already it is not founded but recovered from.
  uint8_t form;
} mu_options;

// A decided command.
typedef struct mu_command {
  // Index of its entry: the total order, together with `place`.
  uint64_t index;
  // Leader time in nanoseconds since 1970: the same on every replica, and never going back.
  uint64_t time_ns;
  // The client; 0 without a session.
  uint64_t client;
  // The client's number of it; 0 without a session.
  uint64_t sequence;
  // Its bytes, good until the callback returns.
  const uint8_t *data;
  // How many.
  size_t len;
  // Its place among the commands of the entry.
  uint32_t place;
  // MU_APPLY_LEADER, MU_APPLY_REPLAY or 0. They differ from replica to replica: the state must not depend on them.
  uint32_t flags;
} mu_command;

// Where a callback writes to. Good until it returns, on its thread.
typedef uint64_t mu_sink;

// Where a callback reads from. Good until it returns, on its thread.
typedef uint64_t mu_source;

// What a replica is, as far as it knows.
typedef struct mu_role {
  // The epoch (term) in which it leads or wants to; 0 else.
  uint64_t epoch;
  // One of MU_ROLE_...
  uint32_t role;
  // Whether its votes count: 1 or 0.
  uint8_t voter;
  // Which member leads, or MU_NO_LEADER.
  uint8_t leader;
} mu_role;

// The program's functions. They are called one at a time: in threaded mode on the replica's thread, in step mode
// inside of the calls of this library. They must not call back, apart from what is said in docs/capi.md; nothing may
// be thrown out of them.
typedef struct mu_callbacks {
  // Bytes of this structure, as the program knows it.
  size_t size;
  // Handed to every function.
  void *user;
  // Applies a command and writes the reply, if there is one. Every replica applies every command, the leader too,
  // and must come to the same state and reply. Anything but 0 ends this replica.
  int (*apply)(void*, const struct mu_command*, mu_sink);
  // Writes the whole state. Anything but 0 ends this replica.
  int (*save)(void*, mu_sink);
  // Replaces the state by one that `save` wrote. Anything but 0: it is no such state; the replica takes another one.
  int (*load)(void*, mu_source);
  // A number that differs when states differ; cheap. May be NULL: then only commands and replies are compared.
  uint64_t (*digest)(void*);
  // What the replica is has changed. May be NULL.
  void (*role)(void*, const struct mu_role*);
  // The replica has stopped and nobody asked it to: a code and the reason. May be NULL.
  void (*fatal)(void*, mu_result, const char*);
} mu_callbacks;

// A replica of this process. 0 is none. Handles are checked: one that was closed is answered with MU_CLOSED.
typedef uint64_t mu_handle;

// Where a reply goes. NULL in the place of one: the reply is not wanted.
typedef struct mu_reply {
  // In: the program's buffer; may be NULL if `capacity` is 0.
  uint8_t *data;
  // In: its bytes.
  size_t capacity;
  // Out: bytes of the whole reply. If that is more than `capacity`, only so much was copied, and the code is
  // MU_TRUNCATED.
  size_t len;
  // Out: index of the entry that carried the command; 0 for a barrier.
  uint64_t index;
} mu_reply;

// A command or barrier that was submitted.
typedef uint64_t mu_ticket;

// The picture of a replica.
typedef struct mu_status {
  // The epoch (term) in which it leads; else the one it has promised not to go below.
  uint64_t epoch;
  // The last entry it knows to be decided.
  uint64_t commit;
  // The last entry it applied.
  uint64_t applied;
  // Commands without an outcome.
  uint64_t in_flight;
  // One of MU_ROLE_...
  uint32_t role;
  // Whether its votes count: 1 or 0.
  uint8_t voter;
  // Its id.
  uint8_t id;
  // Which member leads, or MU_NO_LEADER.
  uint8_t leader;
} mu_status;

// Decided and applied here; or done.
#define MU_OK 0

// Another replica leads, or nobody does: the command was not and will not be decided. `mu_get_leader` has a hint.
#define MU_NOT_LEADER 1

// The command may be decided, now or later: try again with the same client and sequence.
#define MU_UNKNOWN 2

// The command is longer than the configuration allows. It was not decided.
#define MU_TOO_LARGE 3

// Too much is in flight, or the log is full. It was not decided: wait a moment, and try again.
#define MU_BUSY 4

// This replica has stopped. `mu_last_error` says why.
#define MU_STOPPED 5

// An argument is NULL, out of its range, or names nothing. Nothing was done.
#define MU_INVALID_ARGUMENT 6

// Called from inside a callback, in the wrong mode, or by two threads where one is allowed. Nothing was done.
#define MU_MISUSE 7

// The handle was closed.
#define MU_CLOSED 8

// There is no outcome within the time. A ticket is still good.
#define MU_TIMED_OUT 9

// Decided and applied, or done; what was to be copied did not fit the buffer. The length says how much there was.
#define MU_TRUNCATED 10

// Decided and applied by an earlier try of the same client and sequence, whose reply was too long to be kept.
#define MU_REPLY_GONE 11

// The client has used a later sequence already: this command was not applied now.
#define MU_SUPERSEDED 12

// The leadership was not handed over: this replica leads on.
#define MU_NOT_HANDED_OVER 13

// The configuration is wrong, or what it names cannot be had. `mu_last_error` says what.
#define MU_CONFIG 14

// The device, the control address or the operating system refused. `mu_last_error` says what.
#define MU_SYSTEM 15

// A fault of this library. `mu_last_error` has its words; please report it.
#define MU_INTERNAL 16

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the interface that this library has: a program goes on only if it is MU_ABI_VERSION.
uint32_t mu_abi_version(void);

// What a result code means, in a few words. Never NULL.
const char *mu_strerror(mu_result code);

// The words of this thread's last call that did not end with MU_OK; empty if there was none. Good until the next
// such call.
const char *mu_last_error(void);

// Writes what replicas say of themselves to standard error from now on, once per process. `filter` is "info", "warn",
// "mu=debug" or the like.
//
// Pointers: `filter` is NULL or a text.
mu_result mu_log(const char *filter);

// Fills in the defaults: threaded mode, id 0, a group that is there already.
//
// Pointers: `options` is NULL or points to memory for the structure.
mu_result mu_options_init(struct mu_options *options);

// Starts a replica of the configuration in a file.
//
// Pointers: `path` is NULL or a text; the others are NULL or point to their structures, whose sizes are right.
mu_result mu_open_file(const char *path,
                       const struct mu_options *options,
                       const struct mu_callbacks *callbacks,
                       mu_handle *handle);

// Starts a replica of the configuration in a text. A relative `psk_file` in it is looked for in `folder`; NULL is
// the current one.
//
// Pointers: As for `mu_open_file`.
mu_result mu_open_text(const char *config,
                       const char *folder,
                       const struct mu_options *options,
                       const struct mu_callbacks *callbacks,
                       mu_handle *handle);

// Stops the replica; the others go on. What is in flight gets its outcome, and tickets can still be polled. In step
// mode, if another thread is inside of the replica, that one does it at its next turn.
mu_result mu_stop(mu_handle handle);

// Stops the replica if it runs, waits for its threads and frees what it has. When this returns no callback runs any
// more, and every later call with the handle is answered with MU_CLOSED. Calls that other threads are inside of get
// their outcome.
mu_result mu_close(mu_handle handle);

// Proposes a command and waits until it is decided and applied here, for at most `timeout_us` microseconds (negative:
// for as long as it takes). `client` 0 has no session; else a retry with the same `client` and `sequence`, here or at
// another replica, is applied once. `reply` may be NULL. Neither it nor its buffer may overlap `data`: that is
// answered with MU_INVALID_ARGUMENT.
//
// Pointers: `data` is NULL or points to `len` bytes, `reply` is NULL or points to the structure and that to its buffer.
mu_result mu_propose(mu_handle handle,
                     uint64_t client,
                     uint64_t sequence,
                     const uint8_t *data,
                     size_t len,
                     int64_t timeout_us,
                     struct mu_reply *reply);

// Submits a command without waiting. Its outcome is there once, from `mu_poll`. Tickets end in the order in which
// they were given.
//
// Pointers: `data` is NULL or points to `len` bytes, `ticket` is NULL or points to memory for it.
mu_result mu_submit(mu_handle handle,
                    uint64_t client,
                    uint64_t sequence,
                    const uint8_t *data,
                    size_t len,
                    mu_ticket *ticket);

// Submits a barrier without waiting, as `mu_submit` does.
//
// Pointers: `ticket` is NULL or points to memory for it.
mu_result mu_submit_barrier(mu_handle handle, mu_ticket *ticket);

// The outcome of a ticket, waited for as in `mu_propose` (0: not at all). MU_TIMED_OUT: there is none yet, and the
// ticket is still good. Every other code ends the ticket.
//
// Pointers: `reply` is NULL or points to the structure, and that to its buffer.
mu_result mu_poll(mu_handle handle,
                  mu_ticket ticket,
                  int64_t timeout_us,
                  struct mu_reply *reply);

// Gives a ticket up: nobody wants its outcome.
mu_result mu_forget(mu_handle handle, mu_ticket ticket);

// Waits until everything that was decided before the call is applied here: what the program then reads of its state is
// not stale. Only at the leader.
mu_result mu_barrier(mu_handle handle,
                     int64_t timeout_us);

// Step mode: one turn, and then, if there was nothing to do, a rest of at most `timeout_us` (0: none). The rest ends
// early when there is something to do, when `fd` can be read (negative: none) and by `mu_wake`. A replica that is not
// stepped for the detection time of its configuration, 5 ms at least, is taken for dead by the others.
//
// Pointers: `fd` is negative or an open descriptor.
mu_result mu_step(mu_handle handle,
                  int64_t timeout_us,
                  int32_t fd);

// Hands the leadership to member `to` (MU_NO_LEADER: to the most advanced follower) and waits until this replica does
// not lead any more. `chosen` may be NULL.
//
// Pointers: `chosen` is NULL or points to memory for it.
mu_result mu_transfer(mu_handle handle,
                      uint8_t to,
                      uint8_t *chosen);

// Appends to a sink. Only inside of the callback that got it.
//
// Pointers: `data` is NULL or points to `len` bytes.
mu_result mu_write(mu_sink sink, const uint8_t *data, size_t len);

// Copies at most `capacity` bytes out of a source and says how many; 0 at its end. Only inside of the callback that
// got it.
//
// Pointers: `data` is NULL or points to memory for `capacity` bytes, `count` is NULL or points to memory for it.
mu_result mu_read(mu_source source,
                  uint8_t *data,
                  size_t capacity,
                  size_t *count);

// How many bytes a source still has. Only inside of the callback that got it.
//
// Pointers: `count` is NULL or points to memory for it.
mu_result mu_left(mu_source source, size_t *count);

// Which member leads, as far as this replica knows, or MU_NO_LEADER.
//
// Pointers: `leader` is NULL or points to memory for it.
mu_result mu_get_leader(mu_handle handle, uint8_t *leader);

// Copies the client address of a member, as the configuration has it: what a client is told to try. Empty if it has
// none.
//
// Pointers: `text` is NULL or points to memory for `capacity` bytes.
mu_result mu_get_address(mu_handle handle,
                         uint8_t member,
                         char *text,
                         size_t capacity);

// The picture of a replica.
//
// Pointers: `status` is NULL or points to memory for it.
mu_result mu_get_status(mu_handle handle, struct mu_status *status);

// Copies everything that a replica says of itself and its peers, in the Prometheus text format. `len` gets the bytes
// of the text without the 0 at its end, also when it does not fit; it may be NULL.
//
// Pointers: `text` is NULL or points to memory for `capacity` bytes, `len` is NULL or points to memory for it.
mu_result mu_get_metrics(mu_handle handle,
                         char *text,
                         size_t capacity,
                         size_t *len);

// The same as one JSON object.
//
// Pointers: As for `mu_get_metrics`.
mu_result mu_get_json(mu_handle handle, char *text, size_t capacity, size_t *len);

// Ends a rest in `mu_step`, from any thread.
mu_result mu_wake(mu_handle handle);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MU_H */
