export declare const USAGE: string
export declare const MEMSW: string
export declare const WORKING_SET: string
export declare const ANON: string

export declare class MonitorError extends Error {
  /** Positive errno, where there is one. */
  errno?: number
  /** Name of the errno, such as `EINVAL`. */
  code?: string
}
export declare class RefusedError extends MonitorError {}
export declare class EndedError extends MonitorError {}
export declare class AnswerError extends MonitorError {}
export declare class TimeoutError extends MonitorError {}

export interface Request {
  file: string
  args: string
}

export interface ThresholdOptions {
  direction?: 'up' | 'down'
  hysteresis?: number | string
  exact?: boolean
  on?: string
}

export declare function threshold(level: number | string, options?: ThresholdOptions): Request
export declare function percent(level: number | string, options?: ThresholdOptions): Request
export declare function oom(): Request
export declare function pressure(
  level: 'low' | 'medium' | 'critical',
  mode?: 'default' | 'hierarchy' | 'local',
): Request
export declare function empty(): Request
export declare function removal(): Request

export interface Options {
  /** The program, perhaps with arguments before its own; `memcg-monitor` if absent. */
  program?: string | string[]
  socket?: string
  controlSocket?: string
}

export interface Victim {
  cgroup: string
  /** Process id on the agent's host; `own_pid` is the one in the process's own pid namespace. */
  pid: number | null
  own_pid: number | null
  comm: string | null
  /** The command line, its first 1,024 bytes; `command_cut` says whether there is more. */
  command: string[] | null
  command_cut: boolean
  exe: string | null
  uid: number | null
  oom_score_adj: number | null
  /** Memory is in bytes. */
  total_vm: number | null
  anon_rss: number | null
  file_rss: number | null
  shmem_rss: number | null
  swap: number | null
  page_tables: number | null
  /** The innermost unit of systemd in the group's path. */
  unit: string | null
  pod_uid: string | null
  container_id: string | null
}

export interface Event {
  /** Seconds since 1970, UTC. */
  time: number
  cgroup: string
  event: string
  signals: number
  on: string | null
  threshold: number | null
  direction: string | null
  usage: number | null
  /** The group whose limit caused the OOM, or whose reclaim made the pressure. */
  origin: string | null
  /** The reason of a kill: `limit`, `lowered_limit` or `host`. */
  reason: string | null
  level: string | null
  victim: Victim | null
  /** The inode number of the group's directory; this and the next five are of a watch. */
  id: number
  spec: string | null
  limit: number | null
  /** Bytes a second, below 0 where usage falls. */
  growth: number | null
  peak: number | null
  /** True where it happened before the group could be registered on. */
  late: boolean
  /** Events that this follower was too slow for, just before this one. */
  lost: number
}

export interface Wait {
  /** Milliseconds, any number of them; without it, or with Infinity, the wait has no end. */
  timeout?: number
}

export declare class Registration implements AsyncIterable<number> {
  wait(options?: Wait): Promise<number | null>
  close(): void
  [Symbol.asyncIterator](): AsyncIterator<number>
}

export declare class Follower implements AsyncIterable<Event> {
  waitEvent(options?: Wait): Promise<Event | null>
  close(): void
  [Symbol.asyncIterator](): AsyncIterator<Event>
}

export declare function register(group: string, request: Request, options?: Options): Promise<Registration>
export declare function follow(group: string, request: Request, options?: Options): Promise<Follower>
