// The program's arguments, and what its output means; no part of the package's interface.
import { constants } from 'node:os'

import { AnswerError, EndedError, MonitorError, RefusedError } from './errors.mjs'

const REMOVED = ': the group was removed'
export const ENDED = 'the agent ended'
// The fields of an event and of a victim beside those that each has, with their values where they are absent.
const OPTIONAL = {
  on: null,
  threshold: null,
  direction: null,
  usage: null,
  origin: null,
  reason: null,
  level: null,
  id: 0,
  spec: null,
  limit: null,
  growth: null,
  peak: null,
  late: false,
  lost: 0,
}
const OF_VICTIM = {
  pid: null,
  own_pid: null,
  comm: null,
  command: null,
  command_cut: false,
  exe: null,
  uid: null,
  oom_score_adj: null,
  total_vm: null,
  anon_rss: null,
  file_rss: null,
  shmem_rss: null,
  swap: null,
  page_tables: null,
  unit: null,
  pod_uid: null,
  container_id: null,
}

// Reads one line of the admin socket's JSON: an event, or null for `listening`.
export function decode(line) {
  if (line === '') throw new EndedError(`${ENDED}; register again once it is back`)
  let answer
  try {
    answer = JSON.parse(line)
  } catch {
    answer = {}
  }
  if (answer?.type === 'listening') return null
  if (answer?.type === 'error' && typeof answer.why === 'string') throw refusal(answer.errno, answer.why)
  const isWhole =
    answer?.type === 'event' &&
    typeof answer.time === 'number' &&
    typeof answer.cgroup === 'string' &&
    typeof answer.event === 'string' &&
    Number.isInteger(answer.signals)
  if (!isWhole) throw new AnswerError(`the agent answered ${JSON.stringify(line)}`)
  const { time, cgroup, event, signals, victim } = answer
  return {
    time,
    cgroup,
    event,
    signals,
    ...those(OPTIONAL, answer),
    victim: victim ? { cgroup: victim.cgroup, ...those(OF_VICTIM, victim) } : null,
  }
}

function those(fields, found) {
  return Object.fromEntries(Object.entries(fields).map(([name, absent]) => [name, found[name] ?? absent]))
}

function refusal(errno, why) {
  const name = Object.keys(constants.errno).find((name) => constants.errno[name] === errno)
  return new RefusedError(why, name)
}

// Reads what the program wrote to stderr when it failed.
export function failure(text) {
  const last = text.trim().split('\n').pop().replace(/^(memcg-monitor|Error): /, '')
  if (last.includes(ENDED)) return new EndedError(last)
  const refused = /^(cannot register .*?): (?=(E[A-Z0-9]+): )(.*)$/.exec(last)
  // A call that failed on the way to the agent has an errno, too.
  const isRefused = refused && !/: (connect|socket|sockaddr_un|sendmsg|recvmsg) /.test(refused[1])
  if (isRefused) return new RefusedError(refused[3], refused[2])
  const code = /: (E[A-Z0-9]+): /.exec(last)?.[1]
  return new MonitorError(last || 'memcg-monitor listen ended without a message', code)
}

// `listen -o json` prints the events alone, without a type.
export function typed(line) {
  return line.startsWith('{"type"') ? line : line.replace(/^\{/, '{"type":"event",')
}

// Tells what a line of `listen` is: `removed`, `signal`, or `detail` of the signal before.
export function kindOf(line) {
  if (line.startsWith(' ')) return 'detail'
  return line.endsWith(REMOVED) ? 'removed' : 'signal'
}

// Returns the arguments of the program for a registration.
export function argumentsOf(group, { file, args }, { socket, controlSocket } = {}, json = false) {
  const words = ['listen', '--announce']
  if (json) words.push('-o', 'json')
  if (socket !== undefined) words.push('--socket', socket)
  if (controlSocket !== undefined) words.push('--control-socket', controlSocket)
  words.push(`${group}/${file}`)
  if (args !== '') words.push(args)
  return words
}
