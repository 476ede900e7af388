// Search in pages that a browser opens from disk: browsers start no worker there, so a hidden frame runs its script.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.context = frame.contentWindow
      const inside = `
        postMessage = (data) => parent.postMessage(data, "*")
        importScripts = async (...urls) => {
          for (const url of urls)
            await new Promise((resolve) => {
              const script = document.createElement("script")
              script.onload = resolve
              script.src = url
              document.body.append(script)
            })
        }`
      window.addEventListener("message", ({ source, data }) => {
        if (source !== this.context) return
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      })
      this.context.document.open()
      this.context.document.write(`<body><script>${inside}</script><script src="${url}"></script></body>`)
      this.context.document.close()
      this.ready = new Promise((resolve) => (this.context.onload = resolve)) // open() drops earlier handlers
    }
    async postMessage(data) {
      await this.ready
      this.context.dispatchEvent(new MessageEvent("message", { data }))
    }
    terminate() {
      this.context.frameElement.remove()
    }
  }
}
