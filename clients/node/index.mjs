// Client of memcg-monitor, which gives cgroup v1's memory notifications on cgroup v2 kernels.
//
//     import { register, threshold } from 'memcg-monitor'
//
//     const registration = await register('/sys/fs/cgroup/a', threshold('512M'))
//     for await (const signals of registration) console.log('crossed', signals, 'times')
//
// Node has neither eventfds nor SOCK_SEQPACKET sockets without native code, so each registration
// is a child process, `memcg-monitor listen`, which has both.

import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

import { AnswerError, EndedError, MonitorError, TimeoutError } from './errors.mjs'
import { ENDED, argumentsOf, decode, failure, kindOf, typed } from './wire.mjs'

export * from './errors.mjs'

export const USAGE = 'memory.usage_in_bytes'
export const MEMSW = 'memory.memsw.usage_in_bytes'
export const WORKING_SET = 'memory.working_set_bytes'
export const ANON = 'memory.anon_bytes'

// What can be registered: a control file's name, and the arguments behind it.
export function threshold(level, { direction, hysteresis, exact = false, on = USAGE } = {}) {
  const words = [String(level)]
  if (direction !== undefined) words.push(direction)
  if (hysteresis !== undefined) words.push(`hysteresis=${hysteresis}`)
  if (exact) words.push('exact')
  return { file: on, args: words.join(',') }
}

export const percent = (level, options) => threshold(`${level}%`, options)
export const oom = () => ({ file: 'memory.oom_control', args: '' })
export const pressure = (level, mode) => ({
  file: 'memory.pressure_level',
  args: mode === undefined ? level : `${level},${mode}`,
})
export const empty = () => ({ file: 'cgroup.procs', args: '' })
export const removal = () => ({ file: USAGE, args: '-1' })

// Milliseconds of one timer: setTimeout takes more for 1.
const LONGEST_TIMER = 2 ** 31 - 1

// The children that run. They end with this process, also by an exception or process.exit.
const children = new Set()

function adopt(child) {
  if (children.size === 0) process.on('exit', killAll)
  children.add(child)
}

function release(child) {
  children.delete(child)
  if (children.size === 0) process.off('exit', killAll)
}

function killAll() {
  for (const child of children) child.kill()
}

// A child process, its lines, and the ones who wait for them.
class Lines {
  constructor(program, args) {
    const [command, ...before] = [program].flat()
    this.stderr = ''
    this.queue = []
    this.wake = () => {}
    this.child = spawn(command, [...before, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
    if (this.child.pid !== undefined) adopt(this.child)
    createInterface({ input: this.child.stdout }).on('line', (line) => this.push({ line }))
    createInterface({ input: this.child.stderr }).on('line', (line) => {
      this.stderr += `${line}\n`
      // The program goes on, for an agent that keeps registrations.
      if (line.includes(ENDED)) this.push({ error: new EndedError(line.replace(/^memcg-monitor: /, '')) })
    })
    this.child.on('error', (error) => this.end(new MonitorError(`cannot start ${command}: ${error.message}`, error.code)))
    this.child.on('close', (code) => {
      release(this.child)
      this.end(code === 0 ? null : failure(this.stderr))
    })
  }

  push(item) {
    this.queue.push(item)
    this.wake()
  }

  end(error) {
    if (this.over === undefined) this.over = { error }
    this.wake()
  }

  // Waits until there is a line, an error or the end.
  async ready(timeout) {
    if (this.queue.length > 0 || this.over !== undefined) return
    const deadline = timeout === undefined ? Infinity : performance.now() + timeout
    await new Promise((resolve, reject) => {
      let timer
      const arm = (left) => {
        if (left !== Infinity) timer = setTimeout(expire, Math.min(left, LONGEST_TIMER))
      }
      const expire = () => {
        const left = deadline - performance.now()
        if (left > 0) return arm(left)
        this.wake = () => {}
        reject(new TimeoutError('nothing was signalled within the time-out'))
      }
      arm(deadline - performance.now())
      this.wake = () => {
        clearTimeout(timer)
        this.wake = () => {}
        resolve()
      }
    })
  }

  // Takes the next line; null at the end.
  async next(timeout) {
    await this.ready(timeout)
    const item = this.queue.shift()
    if (item?.error) throw item.error
    if (item) return item.line
    if (this.over.error) throw this.over.error
    return null
  }

  close() {
    this.end(new MonitorError('the registration is closed'))
    this.child.kill()
  }
}

// A registration that counts signals; closing it ends it. One caller at a time waits.
export class Registration {
  #lines
  #isRemoved = false

  constructor(lines) {
    this.#lines = lines
  }

  // Waits for signals, and returns their number since the last call; null once the group is gone.
  // Fails with TimeoutError after `timeout` milliseconds, and once with EndedError when the agent
  // has ended: wait again if that agent keeps registrations, or else register again.
  async wait({ timeout } = {}) {
    if (this.#isRemoved) return null
    let signals = 0
    do {
      const line = await this.#lines.next(timeout)
      const kind = line === null ? 'removed' : kindOf(line)
      if (kind === 'removed') {
        this.#isRemoved = true
        return null
      }
      if (kind === 'signal') signals += 1
    } while (signals === 0 || this.#lines.queue[0]?.line !== undefined)
    return signals
  }

  close() {
    this.#lines.close()
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      const signals = await this.wait()
      if (signals === null) return
      yield signals
    }
  }
}

// A registration that reports the cause of each signal; closing it ends it.
export class Follower {
  #lines
  #isRemoved = false

  constructor(lines) {
    this.#lines = lines
  }

  // Waits for the next event; null after `removed`, which is the last. Fails with TimeoutError
  // after `timeout` milliseconds, and with EndedError when the agent has ended.
  async waitEvent({ timeout } = {}) {
    if (this.#isRemoved) return null
    const line = await this.#lines.next(timeout)
    if (line === null) return null
    const event = decode(typed(line))
    if (event === null) throw new AnswerError(`the agent answered ${line}`)
    this.#isRemoved = event.event === 'removed'
    return event
  }

  close() {
    this.#lines.close()
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      const event = await this.waitEvent()
      if (event === null) return
      yield event
    }
  }
}

async function start(group, request, options, json) {
  const { program = 'memcg-monitor' } = options
  const lines = new Lines(program, argumentsOf(group, request, options, json))
  try {
    const first = await lines.next()
    if (json ? first !== null && decode(first) === null : first === 'registered') return lines
    throw new AnswerError(`memcg-monitor listen printed ${JSON.stringify(first)}`)
  } catch (error) {
    lines.close()
    throw error
  }
}

// Registers at the registration socket. There is no other way from here: the view takes eventfds.
export async function register(group, request, options = {}) {
  return new Registration(await start(group, request, options, false))
}

// Registers at the admin socket, which reports the cause of each signal. It is root's alone
// unless the agent's options admit others.
export async function follow(group, request, options = {}) {
  return new Follower(await start(group, request, options, true))
}
